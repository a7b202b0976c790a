"""Secrets are hidden by name and by value; what only looks like one by its name is not."""

from __future__ import annotations

import pytest
from scalelab.launch.config import OPTIONS_VARIABLE, RunConfig, as_given, shown
from scalelab.launch.text import HIDDEN, redacted_argument, redacted_value


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--model-option=api_key=abc", f"--model-option=api_key={HIDDEN}"),
        ("--model-option=tokens=384", "--model-option=tokens=384"),
        ("--model-option=tokenizer=char", "--model-option=tokenizer=char"),
        ("--model-option=keypoints=a", "--model-option=keypoints=a"),
        ("--model-option=authToken=c2VjcmV0==", f"--model-option=authToken={HIDDEN}"),
        ("--model-option=password=12345678", f"--model-option=password={HIDDEN}"),
        ("--data=https://me:pw@h/x?version=3", f"--data=https://{HIDDEN}@h/x?version=3"),
        ("--data=https://h/x?sig=abc&v=1", f"--data=https://h/x?sig={HIDDEN}&v=1"),
        ('--model-option=o={"token": "a", "n": 1}', f'--model-option=o={{"token": "{HIDDEN}", "n": 1}}'),
        ('--model-option=credentials={"user": "x"}', f"--model-option=credentials={HIDDEN}"),
        ("--data=s3://me:pass@host/x", f"--data=s3://{HIDDEN}@host/x"),
        ("--steps=3", "--steps=3"),
    ],
)
def test_a_word_of_a_command(argument: str, told: str) -> None:
    assert redacted_argument(argument) == told


def test_options_within_options() -> None:
    """At any depth, and under a name that says so all of it."""
    given = {"loader": {"token": "abc", "tokens": 5, "urls": ["https://u:p@h/"]}, "auth": {"user": "x", "on": True}}
    told = {
        "loader": {"token": HIDDEN, "tokens": 5, "urls": [f"https://{HIDDEN}@h/"]},
        "auth": {"user": HIDDEN, "on": True},
    }
    assert redacted_value("model_option", given) == told


@pytest.mark.fault(62)
def test_ranks_have_what_files_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret among a model's options is in no run.json, and reaches the ranks by their environment."""
    config = RunConfig(model="a.py", model_option={"api_key": "abc", "width": 3})
    recorded = shown(config)
    assert recorded["model_option"] == {"api_key": HIDDEN, "width": 3}
    assert as_given(recorded).model_option == {"api_key": HIDDEN, "width": 3}
    monkeypatch.setenv(OPTIONS_VARIABLE, '{"api_key":"abc","width":3}')
    assert as_given(recorded) == config
