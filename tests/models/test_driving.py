"""The driving model as the rest relies on it: a loss that no split or padding changes, in any precision."""

import pytest
import torch
from scalelab.data.schema import BATCH_KEYS
from scalelab.models.driving import blocks, branches, build_model, example_batch
from torch._subclasses.fake_tensor import FakeTensorMode


def nano(seed=0, **overrides):
    torch.manual_seed(seed)
    return build_model("nano", **overrides)


def part(batch, which):
    return {key: value[which] for key, value in batch.items()}


def padded(batch, points=0, boxes=0, junk=0.0):
    """The same samples with more padding, and `junk` in all of it."""
    grown = dict(batch)
    for mask, keys, more in (
        ("points_mask", ("points",), points),
        ("boxes_mask", ("boxes", "classes"), boxes),
    ):
        size = len(batch[mask])
        grown[mask] = torch.cat([batch[mask], torch.zeros(size, more, dtype=torch.bool)], dim=1)
        for key in keys:
            value = torch.cat([batch[key], batch[key].new_zeros(size, more, *batch[key].shape[2:])], dim=1)
            hole = ~grown[mask].view(*grown[mask].shape, *[1] * (value.ndim - 2))
            fill = junk if value.is_floating_point() else 1
            grown[key] = torch.where(hole, torch.full_like(value, fill), value)
    return grown


def test_example_batch_holds_the_contract():
    """Every key of the schema with its dtype and shape, ragged masks, same seed same batch."""
    batch = example_batch(3, "nano", seed=1)
    assert tuple(batch) == BATCH_KEYS
    assert batch["images"].shape == (3, 6, 3, 96, 160)
    assert batch["images"].dtype == torch.uint8
    assert len(set(batch["points_mask"].sum(1).tolist())) > 1
    assert len(set(batch["boxes_mask"].sum(1).tolist())) > 1
    assert (batch["classes"][~batch["boxes_mask"]] == -1).all()
    again, other = example_batch(3, "nano", seed=1), example_batch(3, "nano", seed=2)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not torch.equal(batch["points"], other["points"])


def test_example_batch_looks_outward():
    """Camera 0 looks along +x, level, and sees up where +z is."""
    turn = example_batch(1, "nano")["extrinsics"][0, 0, :3, :3]
    torch.testing.assert_close(turn @ torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(turn @ torch.tensor([0.0, -1, 0]), torch.tensor([0.0, 0, 1]))
    torch.testing.assert_close(torch.linalg.det(turn), torch.tensor(1.0))


def test_loss_of_a_batch_is_the_mean_over_any_split():
    """In double precision the loss of 6 samples equals the weighted mean of its parts, to 1e-12."""
    model, batch = nano().double(), example_batch(6, "nano")
    whole = model(batch)
    assert whole.shape == ()
    assert whole.dtype == torch.float64
    for sizes in ([1] * 6, [2, 4], [5, 1], [3, 3]):
        parts = [model(part(batch, slice(sum(sizes[:i]), sum(sizes[: i + 1])))) * n for i, n in enumerate(sizes)]
        assert abs(whole - sum(parts) / 6).item() < 1e-12


@pytest.mark.parametrize("junk", [0.0, 17.0, -1e30, float("inf"), float("nan")])
def test_padding_changes_nothing(junk):
    """More padded points and boxes, whatever they hold, change neither the loss nor a gradient."""
    model, batch = nano().double(), example_batch(3, "nano")
    results = []
    for given in (batch, padded(batch, points=1024, boxes=8, junk=junk)):
        model.zero_grad()
        loss = model(given)
        loss.backward()
        results.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert abs(results[0][0] - results[1][0]) < 1e-12
    for plain, more in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(plain, more, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("missing", ["points_mask", "boxes_mask"])
def test_a_sample_without_points_or_boxes_has_a_finite_loss(missing):
    """An empty sweep or an empty street is a valid sample: finite loss, finite gradients."""
    model, batch = nano(), example_batch(2, "nano")
    batch[missing] = torch.zeros_like(batch[missing])
    loss = model(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("key", "index", "by"),
    [("intrinsics", (slice(None), 0, 0, 0), 5.0), ("intrinsics", (slice(None), 0, 1, 2), 4.0),
     ("extrinsics", (slice(None), 0, 2, 3), 0.3), ("distortion", (slice(None), 0, 0), 0.1),
     ("distortion", (slice(None), 0, 2), 0.02),
     ("images", (slice(None), 0), 9), ("points", (slice(None), 0, 2), 1.0),
     ("tokens", (slice(None), 0), 3), ("ego", (slice(None), 0), 2.0)],
)  # fmt: skip
def test_every_input_matters(key, index, by):
    """Changing calibration, or any other input, changes what the model says."""
    model, batch = nano(), example_batch(2, "nano")
    changed = {name: value.clone() for name, value in batch.items()}
    changed[key][index] += by
    with torch.no_grad():
        before, after = model(batch, raw=True), model(changed, raw=True)
    assert (before[0] - after[0]).abs().max() > 1e-6


def test_turning_a_camera_matters():
    """Two cameras that swap places, images and all else kept, are not the same rig."""
    model, batch = nano(), example_batch(1, "nano")
    swapped = {**batch, "extrinsics": batch["extrinsics"][:, [1, 0, 2, 3, 4, 5]]}
    together = {**swapped, "images": batch["images"][:, [1, 0, 2, 3, 4, 5]]}
    with torch.no_grad():
        before, after, both = (model(b, raw=True)[0] for b in (batch, swapped, together))
    assert (before - after).abs().max() > 1e-6
    # The order in which the cameras are listed, in contrast, says nothing.
    torch.testing.assert_close(before, both, rtol=1e-4, atol=1e-5)


def test_images_must_divide_into_patches():
    """A decoded size that would be cropped in silence is refused."""
    batch = example_batch(1, "nano")
    with pytest.raises(ValueError, match="150x96 pixels do not divide into patches of 16"):
        nano()({**batch, "images": batch["images"][..., :150]})


def test_deterministic_on_the_cpu():
    """Under torch's deterministic mode two passes give bitwise equal losses and gradients."""
    batch = example_batch(2, "nano")
    torch.use_deterministic_algorithms(True)
    try:
        passes = []
        for _ in range(2):
            model = nano()
            loss = model(batch)
            loss.backward()
            passes.append([loss.detach(), *(p.grad for p in model.parameters())])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))


@pytest.mark.parametrize("preset", ["nano", "tiny", "small"])
def test_runs_on_fake_tensors(preset):
    """Forward and backward run without data: no host synchronisation, no shape that depends on values."""
    with FakeTensorMode():
        model, batch = build_model(preset), example_batch(1, preset)
        loss = model(batch)
        loss.backward()
    assert loss.shape == ()
    assert all(p.grad is not None for p in model.parameters())


def test_autocast_keeps_the_loss_in_32_bits():
    """Under bfloat16 autocast the loss is float32 and near the exact one."""
    model, batch = nano(), example_batch(2, "nano")
    exact = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)


def test_weights_in_bfloat16_take_float32_batches():
    """Engines that hold weights in 16 bits feed batches as read: loss in float32, gradients in bfloat16."""
    model, batch = nano(), example_batch(2, "nano")
    exact = model(batch)
    model = model.bfloat16()
    loss = model(batch)
    loss.backward()
    assert [output.dtype for output in (loss, *model(batch, raw=True))] == [torch.float32] * 3
    torch.testing.assert_close(loss, exact, rtol=3e-2, atol=0)
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_same_seed_same_weights():
    """Weights come from torch's generator alone."""
    pairs = zip(nano(3).parameters(), nano(3).parameters(), nano(4).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not torch.equal(nano(3).heads.widen.weight, nano(4).heads.widen.weight)


def test_blocks_run_in_order_and_are_the_repeated_units():
    """`blocks` lists each block once, in the order in which forward runs them, and one call per forward."""
    model = build_model("nano", camera_depth=2, fusion_depth=3, lidar_depth=2)
    units, ran = blocks(model), []
    assert len(units) == 2 + 2 + 1 + 3 + 1
    for unit in units:
        unit.register_forward_hook(lambda module, *_: ran.append(module))
    model(example_batch(1, "nano"))
    assert ran == units


def test_branches_hold_each_parameter_once():
    """The five branches partition the parameters."""
    model = build_model("nano")
    parts = branches(model)
    assert list(parts) == ["camera", "lidar", "text", "fusion", "heads"]
    owned = [id(p) for modules in parts.values() for module in modules for p in module.parameters()]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"dept": 3}, r"'dept' is not one of .*Did you mean 'text_depth'|'dept' is not one of"),
     ({"dim": 30, "heads": 4}, r"dim: 30 is not a multiple of heads=4; the nearest are 28 and 32"),
     ({"patch": 7}, r"image_width: 160 is not a multiple of patch=7; the nearest are 154 and 161"),
     ({"fusion_depth": 0}, r"fusion_depth: 0 is not a whole number of at least 1"),
     ({"grid": 40.0}, r"grid: 40.0 is not a whole number"),
     ({"lidar_channels": 12}, r"lidar_channels: 12 is not a")],
)  # fmt: skip
def test_bad_options_are_refused_by_name(overrides, message):
    """An option that cannot work is refused before anything is built, with its name, value and a way out."""
    with pytest.raises(ValueError, match=message):
        build_model("nano", **overrides)


def test_heads_see_the_fine_lidar_grid():
    """What the queries' coarse cells cannot hold reaches the heads directly."""
    heads = nano().heads
    fused, fine = torch.zeros(1, 100, 24), torch.zeros(1, 16, 40, 40)
    spot = fine.clone()
    spot[0, :, 20, 20] = 1
    with torch.no_grad():
        assert (heads(fused, spot)[0] - heads(fused, fine)[0])[0, :, 20, 20].abs().max() > 1e-4


def test_detect_returns_the_best_boxes_of_each_sample():
    """Up to `limit` detections per sample, best first, inside the range, as numpy arrays."""
    model, batch = nano(), example_batch(3, "nano")
    found = model.detect(batch, limit=20)
    assert len(found) == 3
    for scene in found:
        assert scene.boxes.shape == (20, 7)
        assert (scene.scores[:-1] >= scene.scores[1:]).all()
        assert set(scene.classes) <= {0, 1, 2}
        assert (scene.boxes[:, 3:6] > 0).all()
