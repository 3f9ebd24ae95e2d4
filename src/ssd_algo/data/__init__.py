"""From a channel to batches; NumPy and OpenCV only, never mxnet."""
