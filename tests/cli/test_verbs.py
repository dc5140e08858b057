"""What the verbs print, for people and for machines."""

import json
from pathlib import Path

import pytest
import timm
import torch

import secateur
from secateur.models.family import read
from tests.cli.conftest import Run

ACCURACY = {"top1", "top5", "n", "stderr", "agreement", "kl", "change_stderr"}


def test_inspect(run: Run) -> None:
    found = run("inspect", "digits_vit", "--json").json
    model = secateur.load("digits_vit")
    cost = read(model).cost()
    assert (found["macs"], found["params"]) == (cost.macs, cost.params)
    assert found["params"] == sum(p.numel() for p in model.parameters())
    assert len(found["branches"]) == 12
    ends = found["ends"]
    assert sum(branch["macs"] for branch in found["branches"]) + ends["macs"] == cost.macs
    first = found["branches"][0]
    assert first["id"] == "blocks.0.attn"
    assert first["shape"] == {"heads": 4, "qk": 16, "vo": 16}
    assert set(first["groups"]) == {"heads", "qk", "vo"}

    text = run("inspect", "digits_vit").out
    assert "5,240,192 MACs" in text
    assert "blocks.5.mlp" in text
    assert "Can be pruned: qk, vo, heads, hidden, branch, block." in text


def test_inspect_times_layers(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("secateur.measurement.timing.SECONDS", 0.0)
    arguments = ("inspect", "digits_vit", "--latency", "--threads", 1, "--latency-batch", 2)
    found = run(*arguments, "--json").json
    time = found["latency"]
    assert (time["runtime"], time["batch_size"], time["threads"]) == ("eager", 2, 1)
    inside = sum(branch["ms"] for branch in found["branches"])
    assert all(branch["ms"] > 0 for branch in found["branches"])
    assert inside + time["ends_ms"] == pytest.approx(time["ms"])
    # Layers of the same geometry share one measurement.
    assert len({branch["ms"] for branch in found["branches"]}) == 2
    text = " ".join(run(*arguments).out.split())
    assert "of time" in text and "batch 2, 1 thread)" in text
    silent = run("inspect", "digits_vit", "--json").json
    assert silent["latency"] is None
    assert {branch["ms"] for branch in silent["branches"]} == {None}


def test_analyze(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "page"
    arguments = ("analyze", "digits_vit", "--data", "digits/train", "--limit", 48, "--no-latency")
    found = run(*arguments, "--out", out, "--json")
    assert found.code == 0, found.err
    told = found.json
    assert told["out"] == str(out) and told["model"] == "digits_vit"
    assert len(told["findings"]) >= 3 and len(told["layers"]) == 12
    assert (told["data"]["images"], told["probe_images"], told["unit"]) == (48, 32, "nats")
    saved = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
    assert told.pop("replaced") is None
    assert saved == {key: value for key, value in told.items() if key != "out"}
    assert "digits_vit: redundancy" in (out / "analysis.html").read_text("utf-8")
    text = " ".join(run(*arguments).out.split())
    assert "forward passes over 48 images" in text
    assert "Rank correlation of scores with degradation" in text
    assert "blocks.5.mlp" in text


def test_inspect_says_why_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("vit_tiny_patch16_224", qk_norm=True, depth=2)
    monkeypatch.setattr("secateur.verbs.load.load_model", lambda *_, **__: model)
    first = run("inspect", "timm:with_qk_norm", "--json").json["branches"][0]
    assert set(first["groups"]) == {"vo", "heads"}
    assert "QK-norm" in first["refusals"]["qk"]
    text = " ".join(run("inspect", "timm:with_qk_norm").out.split())
    assert "Cannot be pruned: qk in blocks.0.attn … blocks.1.attn, because QK-norm" in text
    assert "Can be pruned: vo, heads, hidden, branch, block." in text


def test_inspect_downloads_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("a download began")

    monkeypatch.setattr("timm.models._builder.load_pretrained", download)
    found = run("inspect", "timm:deit_base_patch16_224", "--json").json
    assert (found["macs"], found["params"]) == (17_563_828_224, 86_567_656)


def test_inspect_reads_narrow_and_wide(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("60", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        lines = run("inspect", "digits_vit").out.splitlines()
        assert max(map(len, lines)) <= int(columns)
        assert not any("…" in line for line in lines)


def test_prune_and_what_it_saves(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "small"
    found = run(
        "prune", "digits_vit", "--data", "digits/train", "--budget", "60% params", "--out", out,
        "--limit", 64, "--eval-data", "digits", "--json", "--preset", "energy",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert found.err == ""
    told = found.json
    assert (told["out"], told["preset"], told["budget"]) == (str(out), "energy", "60% params")
    assert told["params"]["dense"] == 302_154
    assert told["params"]["pruned"] <= 0.6 * 302_154
    assert told["target"]["unit"] == "params"
    assert told["target"]["reached"] == told["params"]["pruned"]
    assert told["macs"]["pruned"] < told["macs"]["dense"] == 5_240_192
    assert told["seconds"] == pytest.approx(sum(told["stages"].values()))
    assert told["data"]["images"] == 64
    assert told["accuracy"]["dense"]["n"] == told["accuracy"]["pruned"]["n"] == 450
    assert told["accuracy"]["dense"]["top1"] > 98
    assert [row["model"] for row in told["latency"]] == ["dense", "pruned"]
    assert all(row["median_ms"] > 0 and row["runs"] >= 30 for row in told["latency"])

    assert {path.name for path in out.iterdir()} == {
        "spec.json",
        "model.safetensors",
        "README.md",
        "report.html",
    }
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| top1 | 98" in card
    assert "dense_logits" not in card
    again = secateur.load(out)
    assert sum(p.numel() for p in again.parameters()) == told["params"]["pruned"]
    scored = run("evaluate", out, "--data", "digits", "--json").json
    assert scored["top1"] == told["accuracy"]["pruned"]["top1"]
    assert scored["kl"] == pytest.approx(told["accuracy"]["pruned"]["kl"], abs=1e-6)


def test_prune_by_a_recipe(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("{hidden: [40, 40, 32, 32, 50%, 50%], qk: 8, width: 48}")
    out = tmp_path / "small"
    found = run(
        "prune", "digits_vit", "--data", "digits/train", "--recipe", mine, "--preset", "snp",
        "--limit", 32, "--no-latency", "--out", out,
    )  # fmt: skip
    assert found.code == 0, found.err
    assert "stream width" in found.out and f"recipe {mine}" in " ".join(found.out.split())
    again = run("inspect", out, "--json").json
    assert again["width"] == 48 and again["branches"][1]["shape"] == {"hidden": 40}
    assert again["streams"] == {"stream": 48}


def test_prune_tells_people(run: Run, tmp_path: Path) -> None:
    found = run(
        "prune", "digits_vit", "--data", "digits/train", "--budget", "60% macs",
        "--out", tmp_path / "small", "--limit", 64, "--eval-data", "digits",
    )  # fmt: skip
    assert found.code == 0, found.err
    for words in ("MACs", "parameters", "top-1", "latency, eager, batch 1", "±", "points"):
        assert words in found.out
    assert "Budget 60% macs: target 3.14" in found.out
    assert "64 calibration images" in found.out
    assert "report.html" in found.out


def test_the_same_seed_gives_the_same_model(run: Run, tmp_path: Path) -> None:
    fingerprints = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        found = run(
            "prune", "digits_vit", "--data", "digits/train", "--budget", "50% hidden",
            "--out", tmp_path / name, "--limit", 32, "--preset", "random", "--seed", seed,
            "--no-latency",
        )  # fmt: skip
        assert found.code == 0, found.err
        spec = json.loads((tmp_path / name / "spec.json").read_text())
        fingerprints.append(spec["weights"]["sha256"])
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_options_reach_the_plan(run: Run, tmp_path: Path) -> None:
    found = run(
        "prune", "digits_vit", "--data", "digits/train", "--budget", "60% macs", "--limit", 32,
        "--out", tmp_path / "small", "--groups", "hidden", "--align", "hidden=24",
        "--min-width", "hidden=48", "--protect", "blocks.0", "--repair", "none",
        "--allocation", "ranking", "--preset", "energy", "--no-latency",
    )  # fmt: skip
    assert found.code == 0, found.err
    spec = json.loads((tmp_path / "small" / "spec.json").read_text())
    shapes, made = spec["shapes"], spec["provenance"]
    assert shapes["blocks.0.mlp"] == {"hidden": 256}
    hidden = [shapes[f"blocks.{i}.mlp"]["hidden"] for i in range(1, 6)]
    assert all(size == 256 or (size % 24 == 0 and size >= 48) for size in hidden)
    assert all(shapes[f"blocks.{i}.attn"] == {"heads": 4, "qk": 16, "vo": 16} for i in range(6))
    assert (made["groups"], made["repair"], made["allocation"]) == (["hidden"], "none", "ranking")


def test_preprocessing_is_saved_with_the_model(run: Run, pruned_once: Path) -> None:
    spec = json.loads((pruned_once / "spec.json").read_text())
    assert spec["base"]["preprocessing"]["mean"] == [0.45]
    found = run("evaluate", pruned_once, "--data", "digits", "--limit", 10, "--json").json
    assert (found["preprocessing"]["mean"], found["preprocessing"]["std"]) == ([0.45], [0.5])


def test_evaluate(run: Run, digits_folder: Path) -> None:
    found = run("evaluate", "digits_vit", "--data", digits_folder, "--json").json
    assert found.keys() >= ACCURACY
    assert found["n"] == 30
    assert found["top1"] > 90
    assert found["stderr"] == pytest.approx((found["top1"] * (100 - found["top1"]) / 30) ** 0.5)
    assert found["agreement"] is None
    assert found["kl"] is None
    assert found["note"].startswith("no reference")


def test_evaluate_counts_unreadable_images(run: Run, digits_folder: Path) -> None:
    (digits_folder / "7" / "0.png").write_bytes(b"not an image")
    arguments = ["evaluate", "digits_vit", "--data", digits_folder, "--skip-unreadable"]
    found = run(*arguments, "--json").json
    assert (found["n"], found["unreadable"]) == (29, ["7/0.png"])
    assert "1 unreadable images were left out: 7/0.png." in run(*arguments).out


def test_evaluate_without_labels(run: Run, digits_folder: Path, tmp_path: Path) -> None:
    (digits_folder / "7").rename(tmp_path / "loose")
    found = run("evaluate", "digits_vit", "--data", tmp_path / "loose", "--json").json
    assert (found["top1"], found["top5"], found["stderr"], found["n"]) == (None, None, None, 3)
    assert "no labels" in run("evaluate", "digits_vit", "--data", tmp_path / "loose").out


def test_a_model_beside_a_reference(run: Run, pruned_once: Path) -> None:
    found = run("evaluate", pruned_once, "--data", "digits", "--json").json
    assert found["note"] == "reference: zoo:digits_vit, the dense model it was pruned from."
    assert 50 < found["agreement"] < 100
    assert found["kl"] > 0
    named = run(
        "evaluate", pruned_once, "--data", "digits", "--reference", "digits_vit", "--json"
    ).json
    assert (named["agreement"], named["kl"]) == (found["agreement"], found["kl"])
    itself = run("evaluate", pruned_once, "--data", "digits", "--reference", pruned_once).out
    assert "100.0 %" in itself
    assert "0.0000 nats" in itself


def test_evaluate_metrics(run: Run, digits_folder: Path, tmp_path: Path) -> None:
    found = run(
        "evaluate", "digits_vit", "--data", digits_folder, "--train-data", "digits/train",
        "--train-limit", 300, "--metrics", "knn,linear_probe,retrieval", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    told = found.json
    assert told["top1"] > 90 and told["n"] == 30
    assert set(told["metrics"]) == {"knn", "linear_probe", "retrieval"}
    assert told["metrics"]["knn"]["top1"] > 80 and told["metrics"]["knn"]["n"] == 30
    assert told["metrics"]["linear_probe"]["top1"] > 80
    assert told["metrics"]["retrieval"]["map"] > 60
    # Three folders of other names: labels of their own, no accuracy.
    for name in ("0", "1", "2"):
        (digits_folder / name).rename(tmp_path / f"kind {name}")
    others = tmp_path / "others"
    others.mkdir()
    for name in ("0", "1", "2"):
        (tmp_path / f"kind {name}").rename(others / f"kind {name}")
    arguments = ("evaluate", "digits_vit", "--data", others, "--metrics", "retrieval")
    told = run(*arguments, "--features-only", "--json").json
    assert (told["top1"], told["n"]) == (None, 9) and told["metrics"]["retrieval"]["map"] > 50
    text = run(*arguments, "--features-only").out
    assert "retrieval: map" in text and "top-1" not in text


def test_evaluate_features_beside_the_dense_model(run: Run, pruned_once: Path) -> None:
    told = run(
        "evaluate", pruned_once, "--data", "digits", "--limit", 60, "--metrics", "features",
        "--json",
    ).json  # fmt: skip
    found = told["metrics"]["features"]
    assert 0.5 < found["cka_pooled"] < 1 and 0.3 < found["cosine_class"] < 1
    assert told["agreement"] > 50


def test_bench_puts_the_dense_original_beside_a_saved_model(run: Run, pruned_once: Path) -> None:
    arguments = ["bench", pruned_once, "--min-runs", 3, "--max-seconds", 0, "--batch-size", "1,2"]
    rows = run(*arguments, "--json").json["rows"]
    assert [(row["model"], row["batch_size"]) for row in rows] == [
        ("dense", 1),
        (str(pruned_once), 1),
        ("dense", 2),
        (str(pruned_once), 2),
    ]
    for row in rows:
        assert row["runs"] >= 3
        assert row["throughput"] == pytest.approx(1000 * row["batch_size"] / row["median_ms"])
        assert row["iqr_ms"] >= 0
    assert rows[0]["ratio"] == 1
    text = run(*arguments, "--threads", 1).out
    assert "1 thread;" in text.replace("\xa0", " ")
    assert "dense" in text


def test_export(run: Run, pruned_once: Path, tmp_path: Path) -> None:
    found = run("export", pruned_once, "--to", "torch", "--out", tmp_path / "a.pt2", "--json")
    assert found.code == 0, found.err
    assert found.json["max_rel"] < 1e-4
    assert found.json["path"] == str(tmp_path / "a.pt2")
    program = torch.export.load(tmp_path / "a.pt2").module()
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(program(x), secateur.load(pruned_once)(x))


def test_an_error_of_the_program_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr("secateur.verbs.load.load_model", broken)
    found = run("inspect", "digits_vit", "--json")
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("error: ZeroDivisionError: by zero")
    assert "--debug" in found.err
    assert "Traceback" not in found.err
    assert "Traceback" in run("inspect", "digits_vit", "--debug").err


def test_an_interrupt(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.verbs.load.load_model", interrupted)
    found = run("inspect", "digits_vit")
    assert (found.code, found.out, found.err) == (130, "", "error: interrupted.\n")
