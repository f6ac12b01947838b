"""Every lesson runs from top to bottom in a fresh kernel, and says what it should."""

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

LESSONS = Path(__file__).resolve().parents[2] / "notebooks"


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook in a kernel of its own."""
    return NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


def text_of(cell: nbformat.NotebookNode) -> str:
    """All the text that a cell printed or returned."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        parts.append(output.get("data", {}).get("text/plain", ""))
    return "\n".join(parts)


def solve(lesson: nbformat.NotebookNode) -> int:
    """Put each solution into the cell above it; how many there are."""
    found = 0
    for exercise, cell in pairwise(lesson.cells):
        if "<summary>Solution</summary>" in cell.source:
            assert "..." in exercise.source
            exercise.source = cell.source.split("```python\n")[1].split("\n```")[0]
            found += 1
    return found


@pytest.mark.cluster
def test_the_first_lesson_answers_steps_and_stops(tmp_path: Path) -> None:
    done = run(nbformat.read(LESSONS / "01_first_pipeline.ipynb", as_version=4), tmp_path)

    said = {cell.source.split("\n")[0]: text_of(cell) for cell in done.cells if cell.cell_type == "code"}
    assert "Paris" in said["%mlx_generate What is the capital of France?"]
    assert "layers 0–14" in said["%mlx_load smollm2"]
    assert "layers 15–29" in said["%mlx_load smollm2"]
    assert "[B 1, L 37, D 576] float32" in said["%mlx_step into"]
    assert "layers.1.output" in said["%mlx_step layer 2"]
    assert "rank 0: 37 written · rank 1: 37 pending" in said["%mlx_step rank"]
    assert re.search(r"decode 37:38 · rank 0", said["%mlx_step token"])
    assert "Paris" in said["pipe.last"]
    offsets = re.findall(r"offset (\d+)", said["%%px"])
    assert len(offsets) == 2
    assert len(set(offsets)) == 1
    assert "has stopped" in said["%mlx_cluster stop"]


@pytest.mark.cluster
def test_the_lesson_on_generating_gives_the_same_answers_and_checks_itself(tmp_path: Path) -> None:
    lesson = nbformat.read(LESSONS / "02_generating.ipynb", as_version=4)
    assert solve(lesson) == 3

    done = run(lesson, tmp_path)

    said = "\n".join(text_of(cell) for cell in done.cells if cell.cell_type == "code")
    assert "Paris" in said
    assert "finished with 40 tokens" in said
    assert "reused" in said
    assert "Row 1 is what the prompt gives alone:" in said
    assert "layers 8–29" in said
    assert said.count("Right: ") == 3
    assert re.search(r"^paused after \d+ tokens", said, re.MULTILINE)
    assert re.search(r"^decode   busy: rank 0 \d+%, rank 1 \d+% · bubbles \d+%", said, re.MULTILINE)


@pytest.mark.cluster
def test_the_lesson_on_the_kv_cache_writes_trims_turns_and_packs(tmp_path: Path) -> None:
    lesson = nbformat.read(LESSONS / "03_the_kv_cache.ipynb", as_version=4)
    assert solve(lesson) == 6

    done = run(lesson, tmp_path)

    said = "\n".join(text_of(cell) for cell in done.cells if cell.cell_type == "code")
    assert said.count("Right: ") == 6
    assert "Put your answer" not in said
    assert "ring of 16" in said
    assert "8-bit" in said
    assert "cannot be trimmed, so none was" in said
    frozen = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in frozen if any("widget-view" in mime for mime in output.get("data", {}))]
    page, _ = HTMLExporter().from_notebook_node(done)  # what nbconvert, and so nbviewer, makes of it
    assert "mlxnb-stepper" in page
    assert "mlxnb-kv" in page
    assert '<script type="application/vnd.jupyter.widget-view' not in page  # nbconvert's own script looks for such


@pytest.mark.cluster
def test_the_lesson_on_cuts_plans_refuses_and_measures(tmp_path: Path) -> None:
    done = run(nbformat.read(LESSONS / "04_where_to_cut.ipynb", as_version=4), tmp_path)

    said = "\n".join(text_of(cell) for cell in done.cells if cell.cell_type == "code")
    assert "rank 0  mini1  embed, layers 0–" in said
    assert "does not fit: rank 0 (mini0) would need" in said
    assert "61 layers · 8 ranks · bfloat16" in said
    assert "goes through its layers 2 times in a pass; a pipeline goes through once" in said
    assert "embed, layers 0–4" in said
    assert "Paris" in said
    assert "layers 5–29, norm, head" in said
    assert "rank 0 → rank 1 · 83 KiB" in said


@pytest.mark.cluster
def test_the_lesson_on_the_debugger_finds_its_bugs_and_checks_itself(tmp_path: Path) -> None:
    lesson = nbformat.read(LESSONS / "06_the_debugger.ipynb", as_version=4)
    assert solve(lesson) == 4

    done = run(lesson, tmp_path)

    said = "\n".join(text_of(cell) for cell in done.cells if cell.cell_type == "code")
    assert "model.layers.17.self_attn.k_proj" in said
    assert "config.json: hidden_size = 576" in said
    assert said.count("<|endoftext|>") == 8
    assert "model.layers.5.mlp.up_proj.output, first at" in said
    assert "Its input was still finite" in said
    assert said.count("Right: ") == 4
    for bug in (1, 2, 3):
        assert f"Bug {bug} is gone" in said


@pytest.mark.cluster
def test_the_lesson_on_porting_mends_a_draft_step_by_step(tmp_path: Path) -> None:
    done = run(nbformat.read(LESSONS / "08_porting_a_model.ipynb", as_version=4), tmp_path)

    said = "\n".join(text_of(cell) for cell in done.cells if cell.cell_type == "code")
    assert "mymodel.py, line 28: tensor model.layers.0.self_attn.k_proj.weight" in said
    places = re.findall(r"^ first: (\S+) on rank \d", said, re.MULTILINE)
    assert places == [
        "layers.0.self_attn.rope#1.output",
        "layers.0.self_attn.rope#1.output",
        "layers.0.mlp.down_proj.input",
        "logits",
    ]
    assert "37 tokens · all the same" in said
    assert said.count("Right: ") == 6
    assert "Right: The capital of France is Paris." in said
    assert "exit code 0" in said


@pytest.mark.cluster
def test_the_lesson_on_looking_inside_sees_what_the_ranks_hold_and_checks_itself(tmp_path: Path) -> None:
    lesson = nbformat.read(LESSONS / "07_looking_inside.ipynb", as_version=4)
    assert solve(lesson) == 4

    done = run(lesson, tmp_path)

    said = "\n".join(text_of(cell) for cell in done.cells if cell.cell_type == "code")
    assert "Right: it is decided in layer 29 on rank 1" in said
    assert "Right: layer 23, head 4" in said
    assert re.search(r"Right: \d before, 1046 after", said)
    assert "Right: 12% at best" in said
    assert "7 views are pictures now." in said


@pytest.mark.cluster
@pytest.mark.soak
def test_the_lesson_on_the_debugger_runs_through_with_nothing_solved(tmp_path: Path) -> None:
    done = run(nbformat.read(LESSONS / "06_the_debugger.ipynb", as_version=4), tmp_path)

    said = "\n".join(text_of(cell) for cell in done.cells if cell.cell_type == "code")
    assert said.count("Put your answer into the cell above") == 4
    assert "Right: " not in said


def test_a_lesson_that_fails_would_be_noticed(tmp_path: Path) -> None:
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("%load_ext mlx_nb\n%mlx_generate hi")])

    with pytest.raises(CellExecutionError, match="No cluster is running"):
        run(broken, tmp_path)


@pytest.mark.parametrize("lesson", sorted(LESSONS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_lesson_is_committed_without_outputs(lesson: Path) -> None:
    cells = nbformat.read(lesson, as_version=4).cells

    assert not [cell.source for cell in cells if cell.cell_type == "code" and cell.outputs]
