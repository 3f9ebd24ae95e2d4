"""`train` through its front door: real folders, the real script, its log, its artifact."""

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, TRAIN, Run, environment, read_images, train, write_config

from ssd_algo import demo
from ssd_algo.contract import log_lines
from ssd_algo.contract.log_lines import METRIC_DEFINITIONS
from ssd_algo.data import pack
from ssd_algo.data.files import list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Rules
from ssd_algo.data.loader import Loader
from ssd_algo.data.records import read_record_channel
from ssd_algo.evaluation.evaluate import compare, detect, score
from ssd_algo.inference import predictor


def losses(run: Run) -> list[str]:
    return re.findall(r"epoch=0, batch=\S+ train (\S+ <loss>=\(\S+\))", run.out)


def test_metric_definitions_find_their_values(trained: Run) -> None:
    found = {each["Name"]: re.findall(each["Regex"], trained.out) for each in METRIC_DEFINITIONS}
    assert [float(value) for value in found["train:progress"]] == pytest.approx(
        [100 / 6, 200 / 6, 50, 400 / 6, 500 / 6, 100], abs=0.05
    )
    for name in ("train:smooth_l1", "train:cross_entropy", "train:throughput", "validation:mAP"):
        values = [float(value) for value in found[name]]
        assert len(values) == 6  # once an epoch
        assert all(np.isfinite(values))


def test_log_lines_to_the_letter(trained: Run) -> None:
    prefix = r"\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d (INFO|WARNING) \d+\] "
    best = max(float(value) for value in re.findall(r"mAP <score>=\((\S+)\)", trained.out))
    lines = [
        r"Docker entrypoint called with argument\(s\): train",
        prefix + r"Final configuration: \{'num_classes': '3', .*\}",
        r'#metrics \{"StartTime": .*"Meta": "init_train_data_iter".*\}',
        prefix + r"Epoch:    0, batches:     20, num_examples:    160, \S+ samples/sec, epoch time so far:  0:\S+",
        prefix + r"#quality_metric: host=algo-1, epoch=0, batch=20 train cross_entropy <loss>=\(\S+\)",
        prefix + r"#quality_metric: host=algo-1, epoch=0, batch=20 train smooth_l1 <loss>=\(\S+\)",
        prefix + r"#throughput_metric: host=algo-1, train throughput=\S+ records/second",
        prefix + r"#quality_metric: host=algo-1, epoch=0, validation mAP <score>=\(\S+\)",
        prefix + rf"Updating the best model with validation-mAP={best!r}",
        prefix + rf'Saved checkpoint to "{trained.base}/model/model_algo_1-0000\.params"',
        prefix + r"#progress_metric: host=algo-1, completed 16\.7 % of epochs",
        # 20 batches an epoch: the first step after four epochs is the 81st.
        prefix + r"Update\[81\]: Change learning rate to 1\.00000e-03",
        prefix + r"Update\[101\]: Change learning rate to 1\.00000e-04",
        prefix + r"Test data is not provided\.",
        r'#metrics \{.*"Metrics": \{"epochs": \{"sum": 6\.0,.*"setuptime".*"totaltime".*\}',
        prefix + rf"Training finished: best validation mAP {best:.4f} at epoch \d\.",
    ]
    for line in lines:
        assert re.search(f"^{line}$", trained.out, re.MULTILINE), line
    assert trained.out.rstrip().splitlines()[-1].endswith(".")
    assert "Training finished" in trained.out.rstrip().splitlines()[-1]


def test_same_seed_same_losses_and_recordio_is_the_same_data(base: Path, tmp_path: Path, shapes: Path) -> None:
    """The image format twice, then its data as RecordIO: the same samples, and equal losses."""
    images = train(base, SMALL)
    assert images.code == 0, images.err
    records = tmp_path / "records"
    for channel in ("train", "validation"):
        dataset = read_images(shapes, channel)
        folder = records / "input" / "data" / channel
        folder.mkdir(parents=True)
        pack.write(dataset.samples, folder / "data.rec")
        again = read_record_channel(list_folder(channel, folder), Rules(3), Findings())
        for one, two in zip(dataset.samples, again.samples, strict=True):
            assert one.classes.tolist() == two.classes.tolist()
            assert one.boxes == pytest.approx(two.boxes, abs=1e-6)
            assert one.encoded() == two.encoded()
    channel = {"ContentType": "application/x-recordio", "TrainingInputMode": "File"}
    write_config(records, "inputdataconfig", {"train": channel, "validation": channel})
    write_config(records, "resourceconfig", {"current_host": "algo-7", "hosts": ["algo-7"]})
    run = train(records, SMALL)
    assert run.code == 0, run.err
    assert "host=algo-7" in run.out
    assert len(losses(images)) == 2
    assert losses(run) == losses(images)


def test_images_without_objects_are_trained_on_and_scored(tmp_path: Path) -> None:
    data = tmp_path / "input" / "data"
    demo.write_channels(data, 8, 4, np.random.default_rng(0))
    for channel in ("train", "validation"):
        for path in sorted((data / f"{channel}_annotation").iterdir())[::2]:
            document = json.loads(path.read_text())
            path.write_text(json.dumps(document | {"annotations": []}))
    run = train(tmp_path, SMALL | {"mini_batch_size": "4"})
    assert run.code == 0, run.err
    assert "Training on 8 images, validating on 4." in run.out


def test_metrics_json_has_an_entry_an_epoch_equal_to_the_log(trained: Run) -> None:
    metrics = json.loads((trained.base / "output" / "data" / "metrics.json").read_text())
    logged = [float(value) for value in re.findall(r"mAP <score>=\((\S+)\)", trained.out)]
    epochs = metrics["epochs"]
    assert [entry["epoch"] for entry in epochs] == list(range(6))
    assert [entry["validation"]["mAP"] for entry in epochs] == logged
    losses = [float(value) for value in re.findall(r"train cross_entropy <loss>=\((\S+)\)", trained.out)]
    assert [entry["cross_entropy"] for entry in epochs] == losses
    assert metrics["best"] == {"epoch": logged.index(max(logged)), "mAP": max(logged), "weights": "last"}
    assert "pycocotools" in metrics["definition"]
    validation = epochs[metrics["best"]["epoch"]]["validation"]
    assert validation["mAP"] == pytest.approx(np.mean([each["AP"] for each in validation["classes"].values()]))
    assert validation["mAP_11_points"] > 0
    assert 0 < validation["coco"]["mean"] < validation["coco"]["at_50"] <= 1
    dataset = read_images(trained.base / "input" / "data", "validation")
    counts = np.bincount(np.concatenate([sample.classes for sample in dataset.samples]), minlength=3)
    assert {name: each["objects"] for name, each in validation["classes"].items()} == {
        str(identity): int(count) for identity, count in enumerate(counts)
    }
    assert {each["name"] for each in validation["classes"].values()} == set(dataset.class_names.values())


def test_modern_is_the_default_and_validates_both_kinds_of_weights(base: Path) -> None:
    """Every second epoch, and after the last."""
    given = {name: value for name, value in SMALL.items() if name != "learning_rate"}
    run = train(base, given | {"epochs": "3", "validate_every": "2"})
    assert run.code == 0, run.err
    assert "'recipe': 'modern'" in run.out
    assert re.findall(r"epoch=(\d), validation mAP", run.out) == ["1", "2"]
    assert re.findall(r"epoch=(\d), batch=5 train cross_entropy", run.out) == ["0", "1", "2"]
    kinds = re.findall(r"of their moving average: last (\S+), averaged (\S+)\n", run.out)
    logged = [float(value) for value in re.findall(r"mAP <score>=\((\S+)\)", run.out)]
    assert [max(float(value) for value in each) for each in kinds] == pytest.approx(logged, abs=5e-5)
    assert len(re.findall(r"Validation took \d+\.\d % of the time since the one before\.", run.out)) == 2
    epochs = json.loads((base / "output" / "data" / "metrics.json").read_text())["epochs"]
    assert ["validation" in entry for entry in epochs] == [False, True, True]
    # 15 steps: one of warm-up at half the rate, the last at a hundredth of 0.01 x 8 / 16.
    assert epochs[-1]["learning_rate"] == pytest.approx(0.00005)
    # The weights that scored better are those of the model.
    assert kinds[-1][0] != kinds[-1][1]
    model, samples = predictor.load(base / "model"), read_images(base / "input" / "data", "validation").samples
    with ThreadPoolExecutor(1) as threads, Loader(samples, 128, 8, 1, 0, augmented=False, shuffled=False) as loader:
        futures = detect(model, loader.epoch(0), threads)
        compared = [compare(sample, each.result()) for sample, each in zip(samples, futures, strict=False) if each]
    found = score(compared, 0.5)
    assert found.mean == pytest.approx(max(logged), abs=1e-6)


def test_early_stopping_ends_a_training_without_improvement(base: Path) -> None:
    """An improvement of more than twice the best is asked for, and no epoch is waited for."""
    stopping = {"early_stopping": "true", "early_stopping_min_epochs": "2", "early_stopping_patience": "1"}
    run = train(base, SMALL | stopping | {"epochs": "9", "early_stopping_tolerance": "1", "learning_rate": "1e-9"})
    assert run.code == 0, run.err
    assert re.findall(r"epoch=(\d), validation mAP", run.out) == ["0", "1"]
    assert "Early stopping: no improvement of the validation mAP for 1 epochs." in run.out
    assert '"epochs": {"sum": 2.0' in run.out


def test_the_log_names_validate_every_where_validation_takes_long() -> None:
    assert log_lines.validated(0.3, 1) == "Validation took 30.0 % of the time since the one before."
    assert log_lines.validated(0.4, 2) == (
        "Validation took 40.0 % of the time since the one before. A validate_every above 2 would leave more of it to "
        "training."
    )


def test_the_log_says_how_long_the_steps_waited(trained: Run) -> None:
    shares = re.findall(r"The training steps waited for images (\d+\.\d) % of the epoch's time\.", trained.out)
    assert len(shares) == 6
    assert all(0 <= float(share) <= 100 for share in shares)


def test_without_augmentation_and_with_a_cache(base: Path) -> None:
    """Whole images, decoded once: the second epoch's losses are those of the same pixels, and lower."""
    run = train(base, SMALL | {"augmentation": "false", "cache_mb": "10", "epochs": "2"})
    assert run.code == 0, run.err
    assert "not cached" not in run.out
    without = train(base, SMALL | {"augmentation": "false", "epochs": "2"})
    each = [re.findall(r"train \S+ <loss>=\((\S+)\)", one.out) for one in (run, without)]
    assert each[0] == each[1]
    assert len(each[0]) == 4
    assert float(each[0][2]) < float(each[0][0])
    assert losses(run) != losses(train(base, SMALL))


def test_sigterm_leaves_no_process_behind(base: Path) -> None:
    write_config(base, "hyperparameters", SMALL | {"epochs": "1000"})
    with subprocess.Popen(
        TRAIN, env=environment(base), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "as training context" in line:
                break
        process.terminate()
        process.stdout.read()  # ends when the last process that holds it does
        assert process.wait(60) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_on_the_platform_the_artifact_is_not_packed(base: Path) -> None:
    run = train(base, SMALL, TRAINING_JOB_NAME="job-1")
    assert run.code == 0, run.err
    assert (base / "model" / "hyperparams.json").is_file()
    assert not (base / "output" / "model.tar.gz").exists()
