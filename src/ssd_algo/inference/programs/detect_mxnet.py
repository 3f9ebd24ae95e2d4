"""Detect objects with MXNet 1.9: detect_mxnet.py PICTURE; needs mxnet and opencv-python."""

import json
import sys
from pathlib import Path

import cv2
import mxnet as mx

here = Path(__file__).parent
(symbol,) = (here / "model").glob("*-symbol.json")
graph, arguments, auxiliaries = mx.model.load_checkpoint(str(symbol).removesuffix("-symbol.json"), 0)
side = int(json.loads((here / "model" / "hyperparams.json").read_text())["image_shape"])
executor = graph.simple_bind(mx.cpu(), grad_req="null", data=(1, 3, side, side))
executor.copy_params_from(arguments, auxiliaries)
picture = cv2.imread(sys.argv[1])
if picture is None:
    sys.exit(f"{sys.argv[1]} is no picture that can be read")
interpolation = cv2.INTER_AREA if min(picture.shape[:2]) > side else cv2.INTER_LINEAR
square = cv2.cvtColor(cv2.resize(picture, (side, side), interpolation=interpolation), cv2.COLOR_BGR2RGB)
data = mx.nd.array(square.transpose(2, 0, 1)[None], dtype="float32")
rows = executor.forward(is_train=False, data=data)[0].asnumpy()[0]
names = json.loads((here / "model" / "classes.json").read_text())
for identity, score, *corners in rows[rows[:, 0] >= 0].tolist():
    print(json.dumps({"class": names.get(str(int(identity)), int(identity)), "score": score, "box": corners}))
