"""From an encoded image to detections."""
