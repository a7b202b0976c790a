"""`scalelab sweep`: a matrix of runs on equal terms, made one after the other, and gone on with where it was left."""
