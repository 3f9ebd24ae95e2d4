"""Detect objects with ONNX Runtime: detect_onnx.py PICTURE [model-int8.onnx]; needs onnxruntime and opencv-python."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

here = Path(__file__).parent
session = onnxruntime.InferenceSession(here / "onnx" / (sys.argv[2] if len(sys.argv) > 2 else "model.onnx"))
side = session.get_inputs()[0].shape[2]
picture = cv2.imread(sys.argv[1])
if picture is None:
    sys.exit(f"{sys.argv[1]} is no picture that can be read")
interpolation = cv2.INTER_AREA if min(picture.shape[:2]) > side else cv2.INTER_LINEAR
square = cv2.cvtColor(cv2.resize(picture, (side, side), interpolation=interpolation), cv2.COLOR_BGR2RGB)
((rows,),) = session.run(None, {"data": square.transpose(2, 0, 1)[None].astype(np.float32)})
names = json.loads((here / "model" / "classes.json").read_text())
for identity, score, *corners in rows[rows[:, 0] >= 0].tolist():
    print(json.dumps({"class": names.get(str(int(identity)), int(identity)), "score": score, "box": corners}))
