"""The benchmarks run end to end, at a size that only checks their code."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks/training"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parents[1]))
    yield importlib.import_module(request.param)
    for name in ("plain_loop", request.param):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["slots_cpu"], indirect=True)
def test_the_cpu_benchmark_writes_its_page_and_plot(script: ModuleType, tmp_path: Path) -> None:
    script.main(
        "--base tiny --slots 1 2 --rounds 1 --rows-per-burst 4 --threads 1 --memory-slots "
        f"--out {tmp_path}".split()
    )
    numbers = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert set(numbers["results"]) == {"plain", "1", "2"}
    assert all(found["rows_per_s"] > 0 for found in numbers["results"].values())
    assert "| 2 |" in next(tmp_path.glob("*.md")).read_text()
    assert next(tmp_path.glob("*.png")).stat().st_size > 5_000


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sd15_gpu"], indirect=True)
def test_the_gpu_benchmark_runs_its_whole_code_path_on_a_cpu(
    script: ModuleType, tmp_path: Path
) -> None:
    small = "--build tiny --device cpu --dtype float32 --slots 2 --steps 1 --compile off "
    asked = f"{small}--checkpointing on --out {tmp_path}".split()
    assert [case.kind for case in script.cases_of(script.parse(asked))] == list(script.KINDS)
    script.main([*asked, "--kinds", "plain", "slots"])
    results = json.loads(next(tmp_path.glob("tiny-cpu-*.json")).read_text())
    assert [result["kind"] for result in results] == ["plain", "slots"]
    assert not [result for result in results if "failed" in result]
    page = next(tmp_path.glob("*.md")).read_text()
    assert "## Targets" in page
    assert "slots checkpointing" in page
    # the third kind in this process: each new one imports torch and diffusers again
    setting = script.Setting("tiny", "cpu", "float32", 1, 4, "")
    assert script.measure(script.Case("plain+vae"), setting)["rows_per_s"] > 0


@pytest.mark.parametrize("script", ["sd15_gpu"], indirect=True)
def test_a_case_that_fails_is_a_line_of_the_page_and_does_not_stop_the_others(
    script: ModuleType,
) -> None:
    setting = script.Setting("nowhere", "cpu", "float32", 1, 4, "")
    result = script.with_derived(script.run_case(script.Case("plain"), setting), setting)
    assert "nowhere" in result["failed"]
    assert result["failed"] in script.report([result], setting, "command")


@pytest.mark.parametrize("script", ["sd15_gpu"], indirect=True)
def test_utilisation_follows_from_rows_and_the_cards_peak(script: ModuleType) -> None:
    setting = script.Setting("sd15", "cuda", "bfloat16", 20, 4, "")
    measured = {
        "kind": "slots",
        "slots": 32,
        "checkpointing": False,
        "compile": "",
        "step_s": 0.28,
        "rows_per_s": 64 / 0.28,
        "hardware": "NVIDIA H200",
    }
    derived = script.with_derived(measured, setting)
    assert derived["subject_s"] == pytest.approx(7.0)
    assert derived["utilisation"] == pytest.approx(64 / 0.28 * 1.714 / 989)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sd15_count"], indirect=True)
def test_a_row_of_the_true_shape_costs_what_the_model_costs_whatever_the_slots(
    script: ModuleType,
) -> None:
    unet = script.meta_unet()
    one, many = script.count(unet, 1, 4), script.count(unet, 8, 4)
    assert one.slot_parameters == 797_184  # q, k, v and out of 16 blocks, twice, at rank 4
    assert many.total == one.total
    assert one.total == pytest.approx(1.714, abs=0.001)
    assert "797,184" in script.report([one, many])
