"""What CONTRIBUTING says works, in the order in which it says it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / ".github" / "CONTRIBUTING.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_code_runs_as_it_stands_from_data_to_a_metric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert names["again"].net.config == {"net": "Gain", "classes": 2}
    assert [*names["students"]] == [2, 1] and names["student"].net.b.abs().item() > 0
    assert len(names["robust"]) == 20 and names["row"]["diversity"] > 0


def test_every_link_leads_to_a_file():
    for link in re.findall(r"\]\((\.\./[^)]*)\)", TEXT):
        assert (PAGE.parent / link).exists(), link
