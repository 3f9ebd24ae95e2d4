"""Detect objects with OpenVINO: detect_openvino.py PICTURE [model-int8.xml]; needs openvino and opencv-python."""

import json
import sys
from pathlib import Path

import cv2
import openvino

here = Path(__file__).parent
file = here / "openvino" / (sys.argv[2] if len(sys.argv) > 2 else "model.xml")
model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
side = model.input().get_partial_shape()[1].get_length()
picture = cv2.imread(sys.argv[1])
if picture is None:
    sys.exit(f"{sys.argv[1]} is no picture that can be read")
interpolation = cv2.INTER_AREA if min(picture.shape[:2]) > side else cv2.INTER_LINEAR
square = cv2.cvtColor(cv2.resize(picture, (side, side), interpolation=interpolation), cv2.COLOR_BGR2RGB)
(rows,) = model(square[None])[0]
names = json.loads((here / "model" / "classes.json").read_text())
for identity, score, *corners in rows[rows[:, 0] >= 0].tolist():
    print(json.dumps({"class": names.get(str(int(identity)), int(identity)), "score": score, "box": corners}))
