"""The detector as a graph; mxnet starts here."""
