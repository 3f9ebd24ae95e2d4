"""From detections and truth to metrics."""
