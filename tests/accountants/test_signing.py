"""Signatures of heads."""

import json
import stat

import pytest

import accountants as acc
from accountants.__main__ import main
from tests.accountants.test_ledger import STEP, write
from tests.accountants.test_shared_budget import make

pytest.importorskip("cryptography")


@pytest.fixture
def signed(tmp_path, capsys):
    write(tmp_path / "ledger.jsonl")
    assert main(["keygen", str(tmp_path / "key")]) == 0
    assert main(["sign", str(tmp_path / "ledger.jsonl"), "--key", str(tmp_path / "key")]) == 0
    capsys.readouterr()
    return tmp_path


def verified(folder, capsys, key=None, name="ledger.jsonl"):
    code = main(["verify", str(folder / name), "--key", str(key or folder / "key.pub")])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out + captured.err


def test_a_signed_ledger(signed, capsys):
    assert stat.S_IMODE((signed / "key").stat().st_mode) == 0o600
    code, out = verified(signed, capsys)
    assert (code, "signed by" in out) == (0, True)
    assert verified(signed, capsys, key=(signed / "key.pub").read_text().strip())[0] == 0
    assert main(["verify", str(signed / "ledger.jsonl")]) == 0  # without a key, as ever


def test_later_lines_and_cut_ones_are_not_signed(signed, capsys):
    path = signed / "ledger.jsonl"
    content = path.read_bytes()
    with acc.Ledger(path) as ledger:
        ledger.charge("a", STEP)
    code, out = verified(signed, capsys)
    assert (code, "lines 7 to 7 came after" in out) == (4, True)
    path.write_bytes(b"".join(content.splitlines(keepends=True)[:-1]))
    code, out = verified(signed, capsys)
    assert (code, "other lines or fewer" in out) == (4, True)


def test_other_keys_and_edited_signatures(signed, capsys):
    assert main(["keygen", str(signed / "other")]) == 0
    assert verified(signed, capsys, key=signed / "other.pub")[0] == 4
    good = json.loads((signed / "ledger.jsonl.sig").read_text())
    for change in ({"head": "0" * 64}, {"lines": 5}, {"lines": "6"}, {"signature": "AAAA"}, {"signature": 3}, {"head": None}):
        (signed / "ledger.jsonl.sig").write_text(json.dumps(good | change))
        assert verified(signed, capsys)[0] == 4
    (signed / "ledger.jsonl.sig").write_text("[]")
    assert verified(signed, capsys)[0] == 4
    (signed / "ledger.jsonl.sig").unlink()
    for key in (None, "abc", str(signed / "gone")):
        assert verified(signed, capsys, key=key)[0] == 2


def test_what_is_wrong_with_keys_is_said(signed, capsys):
    assert main(["keygen", str(signed / "key")]) == 2  # never over one that is there
    for key in ("gone", "ledger.jsonl", "key.pub"):
        assert main(["sign", str(signed / "ledger.jsonl"), "--key", str(signed / key)]) == 2
    assert "key" in capsys.readouterr().err


def test_budgets_are_verified_and_signed_too(signed, capsys):
    with make(signed) as budget:
        head = budget.head
    for arguments in ((), ("--head", head)):
        assert main(["verify", str(signed / "budget.jsonl"), *arguments]) == 0
    assert main(["verify", str(signed / "budget.jsonl"), "--head", "0" * 64]) == 4
    assert main(["sign", str(signed / "budget.jsonl"), "--key", str(signed / "key")]) == 0
    assert verified(signed, capsys, name="budget.jsonl")[0] == 0
    path = signed / "budget.jsonl"
    path.write_bytes(path.read_bytes().replace(b"made up", b"made it"))
    code, out = verified(signed, capsys, name="budget.jsonl")
    assert (code, "line 1" in out) == (4, True)
