"""A target in any language: whatever a process does, the suite says what it was and goes on."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reroute_conformance.cases.case import ConfigCase, Row, SelectCase
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_conformance.cases.low_precision import LowCase
from reroute_conformance.cases.sessions import SessionCase
from reroute_conformance.checks import checks
from reroute_conformance.reporting.records import Circumstances, to_records
from reroute_conformance.running.results import INCOMPLETE
from reroute_conformance.running.runner import replay_case, run_check, run_suite
from reroute_conformance.running.saved_failures import save_case
from reroute_conformance.targets import process
from reroute_conformance.targets.answers import MalformedError, SkippedError, UnansweredError
from reroute_conformance.targets.command import CommandTarget, RefusalError
from reroute_conformance.targets.messages import Reply, line_of, validator
from reroute_spec import RerouteError

ROOT = Path(__file__).parents[3]
CHECKS = {check.name: check for check in checks()}

WELL_BEHAVED = """
import json, os, struct, subprocess, sys, time

def say(message):
    sys.stdout.write(json.dumps(message) + "\\n")
    sys.stdout.flush()

def next_case():
    while True:
        message = json.loads(sys.stdin.readline() or '{"type": "bye"}')
        if message["type"] == "bye":
            sys.exit()
        if message["type"] == "case":
            return message
        say({"type": "capabilities", "protocol": 1, "name": "scripted", "profiles": ["core"],
             "dtypes": ["float32"]})

def answer(**result):
    say({"type": "result", "seq": case["seq"], "result": result})

while True:
    case = next_case()
    inputs = case["inputs"]
"""

SELECT = SelectCase(bits=[0, 1065353216, 1056964608], k=1)
NAN = SelectCase(bits=[0, 2143289344], k=1)
WRONG = ConfigCase({"action": "reroute", "decisions": [{"layer": 9, "keep": 1}]}, 4, "tvvt", [2])
RIGHT = ConfigCase({"action": "reroute", "decisions": [{"layer": 1, "keep": 1}]}, 4, "tvvt", [2])
TRACE = DecoderCase(
    {"action": "reroute", "decisions": [{"layer": 1, "keep": 1}]},
    [Row("tvvt", 3, 1, 0), Row("tvt", 4)],
    2,
    config=decoder_config(2, heads=2, kv_heads=2),
)

SESSION = SessionCase(
    TRACE.to_dict(),
    [
        {"op": "prefill", "rows": [vars(row) for row in TRACE.rows]},
        {"op": "turn", "rows": [vars(Row("vt", 5)), vars(Row("tt", 6))]},
        {"op": "crop", "rows": 1},
        {"op": "repeat", "times": 2},
        {"op": "decode", "seed": 1, "requests": 4},
        {"op": "crop", "rows": 1},
    ],
)


@pytest.fixture
def scripted(tmp_path):
    """A target whose answer to a case is the given Python; closed after the test."""
    started = []

    def start(body, timeout=20.0, preamble=WELL_BEHAVED):
        path = tmp_path / f"port{len(started)}.py"
        lines = [f"    {line}" if preamble == WELL_BEHAVED else line for line in body.splitlines()]
        path.write_text(preamble + "\n".join(lines) + "\n")
        started.append(CommandTarget(shlex.join([sys.executable, "-S", str(path)]), timeout))
        return started[-1]

    yield start
    for target in started:
        target.close()


@pytest.fixture
def judged(tmp_path):
    """The verdict of a check on one case."""

    def judge(check, case, target):
        return replay_case(save_case(CHECKS[check], "RR-ERR-003", case, tmp_path), target)

    return judge


def build(folder, old="", new=""):
    """The C port, built in ``folder``, with one piece of its sources replaced."""
    assert shutil.which("cc"), "no C compiler: the example port is part of the suite, install cc"
    shutil.copytree(ROOT / "examples/port-c", folder, ignore=shutil.ignore_patterns("port"))
    if old:
        path = next(path for path in folder.glob("*.c") if old in path.read_text())
        path.write_text(path.read_text().replace(old, new))
    done = subprocess.run(
        ["make", "CFLAGS=-O1 -Werror"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return str(folder / "port")


@pytest.fixture(scope="session")
def port(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built") / "port-c")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("print('out of memory', file=sys.stderr); os._exit(7)", "exit code 7 instead of an answer"),
        ("print('out of memory', file=sys.stderr); os._exit(7)", "\n    out of memory"),
        ("os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("os.close(1); time.sleep(60)", "closed its standard output"),
        ("print('{', flush=True)", "no JSON"),
        ("print(json.dumps({'type': 'result', 'seq': float('nan')}), flush=True)", "NaN is no JSON"),
        ("print('[' * 100000, flush=True)", "no JSON"),
        ("print('1' * 5000, flush=True)", "no JSON"),
        ('os.write(1, b\'{"type": "\\xff"}\\n\')', "no JSON in UTF-8"),
        ("print(flush=True)", "no JSON"),
        ("print('hello, suite', flush=True)", "'hello, suite'"),
        ("say({'type': 'capabilities'})", "expected a message result or skipped or error"),
        ("say(['result'])", "expected a message"),
        ("say({'type': ['result']})", "expected a message"),
        ("case['seq'] += 1; answer(selected=[1])", "answered case 2, asked was 1"),
        ("case['seq'] = '1'; answer(selected=[1])", "$.seq: '1' is not of type 'integer'"),
        ("answer(selected='1')", "$.result.selected: '1' is not of type 'array'"),
        ("answer(selected=[-1])", "less than the minimum"),
        ("answer(selected=[3])", "expected integers from 0 to 2"),
        ("answer(kv_rows=[[1]])", "has no selected"),
        ("answer(selected=[1], because='it is best')", "'because' was unexpected"),
        ("say({'type': 'skipped', 'seq': case['seq']})", "'reason' is a required property"),
    ],
)
def test_what_is_no_answer_is_the_targets_failure(scripted, judged, body, words):
    target = scripted(body)
    verdict = judged("select", SELECT, target)
    assert [violation.rule for violation in verdict.violations] == ["RR-ERR-003"]
    assert words in verdict.violations[0].detail


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        "sys.stdout.write('{'); sys.stdout.flush(); time.sleep(60)",
        "while True: print('still busy', file=sys.stderr)",
    ],
)
def test_a_target_that_hangs_is_given_up(scripted, judged, body):
    started = time.monotonic()
    verdict = judged("select", SELECT, scripted(body, timeout=0.6))
    assert [violation.rule for violation in verdict.violations] == ["RR-ERR-003"]
    assert "did not answer within 0.6 s" in verdict.violations[0].detail
    assert time.monotonic() - started < 5


def test_a_hang_is_not_shrunk(scripted, monkeypatch):
    asked = []
    target = scripted("time.sleep(60)", timeout=0.6)
    select = target.select
    monkeypatch.setattr(target, "select", lambda scores, k: asked.append(k) or select(scores, k))
    result = run_check(CHECKS["select"], target)
    assert result.failure.violation.rule == "RR-ERR-003"
    assert len(asked) == 1


def test_a_line_without_end_is_given_up(scripted, monkeypatch):
    monkeypatch.setattr(process, "LONGEST_LINE", 100_000)
    with pytest.raises(UnansweredError, match="more than 100000 bytes"):
        scripted("while True: sys.stdout.write('1' * 4096)").select(torch.ones(2), 1)


def test_neither_side_can_block_the_other(scripted):
    talks = scripted("print('x' * 1_000_000, file=sys.stderr); answer(selected=[0])")
    assert talks.select(torch.ones(2), 1) == [0]
    deaf = "sys.stdin.readline(); say({'type': 'capabilities', 'protocol': 1, 'name': 'd', 'profiles': [], 'dtypes': ['float32']})"
    deaf = scripted(
        "time.sleep(60)", 0.6, WELL_BEHAVED[: WELL_BEHAVED.index("while True:\n    case")] + deaf + "\n"
    )
    with pytest.raises(UnansweredError, match="did not answer"):
        deaf.select(torch.ones(200_000), 1)


def test_an_answer_may_come_before_the_whole_case_was_read(scripted):
    body = """
os.read(0, 4096)
say({"type": "capabilities", "protocol": 1, "name": "early", "profiles": [], "dtypes": ["float32"]})
os.read(0, 10)
say({"type": "result", "seq": 1, "result": {"selected": [2]}})
time.sleep(0.2)
while os.read(0, 4096):
    pass"""
    target = scripted(body, 5.0, WELL_BEHAVED[: WELL_BEHAVED.index("while True:\n    case")])
    assert target.select(torch.ones(200_000), 1) == [2]


def test_an_answer_that_nobody_asked_for_is_a_failure(scripted):
    target = scripted("answer(selected=[1]); case['seq'] += 1; answer(selected=[1])")
    assert target.select(torch.ones(2), 1) == [1]
    time.sleep(0.2)
    with pytest.raises(UnansweredError, match="before it was asked"):
        target.select(torch.ones(2), 1)


def test_the_next_case_finds_a_fresh_process(scripted, tmp_path):
    mark = tmp_path / "failed once"
    target = scripted(f"""
if not os.path.exists({str(mark)!r}):
    open({str(mark)!r}, "w").close()
    os._exit(1)
answer(selected=[1])""")
    with pytest.raises(UnansweredError):
        target.select(torch.ones(2), 1)
    assert target.select(torch.ones(2), 1) == [1]


def test_a_refusal_carries_field_and_remedy(scripted, judged):
    says = "say({'type': 'error', 'seq': case['seq'], 'message': 'is 9'%s})"
    whole = scripted(says % ", 'field': 'decisions[0].layer', 'remedy': 'give a block'")
    with pytest.raises(RefusalError) as refused:
        whole.plan(WRONG.schedule, 4, WRONG.visual(), WRONG.images)
    assert (refused.value.field, refused.value.remedy) == ("decisions[0].layer", "give a block")
    assert judged("config", WRONG, whole).violations == []
    assert [v.rule for v in judged("config", RIGHT, whole).violations] == ["RR-ERR-003"]
    bare = judged("config", WRONG, scripted(says % "")).violations
    assert [violation.rule for violation in bare][:2] == ["RR-CFG-008", "RR-ERR-001"]


@pytest.mark.parametrize(("check", "case"), [("config", WRONG), ("select-nan", NAN)])
def test_a_crash_is_no_refusal(scripted, judged, check, case):
    verdict = judged(check, case, scripted("os._exit(1)"))
    assert [violation.rule for violation in verdict.violations] == ["RR-ERR-003"]
    nonsense = judged("select-nan", NAN, scripted("answer(selected=[9])"))
    assert [violation.rule for violation in nonsense.violations] == ["RR-SEL-005"]


def test_what_is_skipped_is_never_a_pass(scripted, judged):
    target = scripted("say({'type': 'skipped', 'seq': case['seq'], 'reason': 'not \\x1b[31m today'})")
    with pytest.raises(SkippedError, match="today"):
        target.select(torch.ones(2), 1)
    report = run_suite(target, ["core"], examples=2)
    assert report.failures == []
    assert report.verdict == INCOMPLETE
    for result in report.results:
        assert result.missing() == list(result.check.rules)
        assert (result.examples, result.skipped > 0, sum(result.exercised.values())) == (0, True, 0)
    line = next(line for line in to_records(report, Circumstances({})) if line["record"] == "check")
    assert line["skipped"] == {"cases": 2, "reason": "not \\x1b[31m today"}
    assert judged("select", SELECT, target).skipped == "not \\x1b[31m today"


def test_a_skipped_case_shows_in_the_verdict(vlm_reroute, scripted, monkeypatch, tmp_path):
    scripted("say({'type': 'skipped', 'seq': case['seq'], 'reason': 'not today'})")
    command = shlex.join([sys.executable, "-S", str(tmp_path / "port0.py")])
    monkeypatch.setattr("reroute_conformance.running.runner.checks", lambda: (CHECKS["select"],))
    code, out, _ = vlm_reroute("conform", "--cmd", command, "--report", str(tmp_path / "report"))
    assert code == 2
    assert "select: 400 cases skipped by the target: not today" in out
    assert "INCOMPLETE: not exercised: RR-SEL-001" in out
    saved = save_case(CHECKS["select"], "RR-SEL-001", SELECT, tmp_path)
    code, out, _ = vlm_reroute("replay", str(saved), "--cmd", command)
    assert code == 2
    assert "skipped by the target: not today" in out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "is empty"),
        ("'unclosed", "cannot be split"),
        ("/no/such/port", "cannot be started"),
        ("true", "exit code 0 instead of an answer"),
        ("echo hello", "no JSON|before it was asked"),
        ("echo {}", "expected a message capabilities|before it was asked"),
    ],
)
def test_a_command_that_does_not_introduce_itself_is_refused(command, words):
    with pytest.raises(RerouteError, match=words) as refused:
        CommandTarget(command, timeout=10)
    assert "--cmd" in refused.value.field


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("profiles=['quantum']", "'quantum' is not one of"),
        ("profiles=['core', 'hf']", "cannot run transformers models"),
        ("profiles=['core', 'nuwa']", "cannot run transformers models"),
        ("profiles=['prefix']", "no cases of shared prefixes"),
        ("profiles=['shards']", "no cases of sharded heads"),
        ("dtypes=['bfloat16']", "do not name float32"),
        ("protocol=2", "1 was expected"),
        ("name=''", "name"),
    ],
)
def test_what_no_command_can_claim_is_refused(scripted, change, words):
    said = "dict(type='capabilities', protocol=1, name='p', profiles=[], dtypes=['float32'])"
    with pytest.raises(RerouteError, match=words):
        scripted(
            f"import json; input(); print(json.dumps({said} | dict({change})), flush=True); input()",
            preamble="",
        )


def test_a_command_is_what_it_says_and_cannot_generate(scripted):
    target = scripted("")
    assert (target.name, target.profiles) == ("scripted", {"core"})
    with pytest.raises(RerouteError, match="not part of the protocol"):
        target.generate(None, {}, None, 1)


def test_a_command_is_asked_for_presets(scripted):
    target = scripted("answer(schedule={'action': 'reroute', 'decisions': [], 'label': json.dumps(inputs)})")
    label = json.loads(target.schedule("fastv-64", 8, [3, 7])["label"])
    assert label == {"preset": "fastv-64", "num_layers": 8, "attention_blocks": [3, 7]}
    given = {"action": "delete", "decisions": []}
    assert json.loads(target.schedule(given, 4)["label"]) == {"schedule": given, "num_layers": 4}
    with pytest.raises(MalformedError, match="has no schedule"):
        scripted("answer(selected=[1])").schedule("fastv-64", 8)


def test_a_command_is_asked_for_the_dtypes_that_it_names(scripted):
    case = LowCase(
        {"action": "reroute", "decisions": []}, [Row("tvt")], config=TRACE.config, dtype="bfloat16"
    )
    run = (case.model(), case.inputs(), case.routing())
    with pytest.raises(SkippedError, match="do not name bfloat16"):
        scripted("").run(*run)
    body = """
with open(case["tensors"], "rb") as file:
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
kinds = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
say({"type": "error", "seq": case["seq"], "message": f"{case['dtype']} {kinds}"})"""
    names_it = WELL_BEHAVED.replace('["float32"]', '["float32", "bfloat16"]')
    assert names_it != WELL_BEHAVED
    with pytest.raises(RefusalError, match=r"bfloat16 \{'BF16'\}"):
        scripted(names_it + "\n".join(f"    {line}" for line in body.splitlines()), preamble="").run(*run)
    reply = Reply(
        case.canonical(), {"requests.0.logits": "x"}, {"x": torch.zeros(3, 23)}, dtype=torch.bfloat16
    )
    with pytest.raises(MalformedError, match=r"is torch\.float32, expected bfloat16"):
        reply.take(0, "logits", None, 23)


def gone(pid, *, orphan):
    """Whether a process ends within some seconds, and has been waited for unless it is an orphan."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{pid}/stat")
        if orphan and stat.exists() and ") Z " in stat.read_text():
            return True  # it has ended; whoever adopted it has not looked yet
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_no_process_is_left_behind(scripted, tmp_path):
    pids = tmp_path / "pids"
    body = f"""
child = subprocess.Popen(["sleep", "100"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
answer(selected=[0])
time.sleep(100)"""
    target = scripted(body)
    assert target.select(torch.ones(2), 1) == [0]
    target.close()
    assert [gone(int(pid), orphan=i > 0) for i, pid in enumerate(pids.read_text().split())] == [True, True]
    code = """
import sys, torch
from reroute_conformance.cases.sessions import SessionCase
from reroute_conformance.targets.command import CommandTarget
CommandTarget(sys.argv[1]).select(torch.ones(2), 1)
kept = CommandTarget(sys.argv[1])
kept.select(torch.ones(2), 1)
sys.exit(5)"""
    command = shlex.join([sys.executable, "-S", str(tmp_path / "port0.py")])
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert [gone(int(pid), orphan=True) for pid in pids.read_text().split()] == [True, True]


PROXY = """
port = subprocess.Popen([PORT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def asked(message):
    port.stdin.write(json.dumps(message).encode() + b"\\n")
    port.stdin.flush()
    return json.loads(port.stdout.readline())

def rewrite(change):
    with open(case["output"], "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header, data = json.loads(file.read(size)), file.read()
    data = change(header, data) or data
    text = json.dumps(header).encode()
    with open(case["output"], "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)

while True:
    case = next_case()
    said = asked(case)
    names = said["result"]["tensors"]
    traces = said["result"]["traces"]
"""


@pytest.mark.parametrize(
    ("body", "rule", "words"),
    [
        ("pass", "", ""),
        ("del said['result']['tensors']", "RR-ERR-003", "has no tensors"),
        ("del names['requests.1.keys.1']", "RR-ERR-003", "requests.1.keys.1 is missing"),
        ("names['requests.0.logits'] = 'x'", "RR-ERR-003", "requests.0.logits is missing"),
        ("names['logits'] = 'x'", "RR-ERR-003", "does not match"),
        ("del names['requests.0.residuals.1']", "RR-ERR-003", "requests.0.residuals.1 is missing"),
        ("del names['requests.0.decode_logits']", "RR-ERR-003", "requests.0.decode_logits is missing"),
        ("rewrite(lambda h, d: h['requests.0.logits']['shape'].reverse())", "RR-ERR-003", "is [23, 4], expected [rows, 23]"),
        ("rewrite(lambda h, d: h['requests.0.logits'].update(shape=[92]))", "RR-ERR-003", "is [92], expected"),
        ("rewrite(lambda h, d: h['requests.0.logits'].update(dtype='I32'))", "RR-ERR-003", "is torch.int32"),
        ("rewrite(lambda h, d: h['requests.0.logits'].update(dtype='F99'))", "RR-ERR-003", "cannot be read"),
        ("rewrite(lambda h, d: b'\\x00\\x00\\xc0\\x7f' + d[4:])", "RR-ERR-003", "holds NaN"),
        ("rewrite(lambda h, d: d[:-1])", "RR-ERR-003", "tensors cannot be read"),
        ("open(case['output'], 'w').close()", "RR-ERR-003", "tensors cannot be read"),
        ("os.remove(case['output'])", "RR-ERR-003", "wrote no file"),
        ("os.remove(case['output']); os.mkfifo(case['output'])", "RR-ERR-003", "wrote no file"),
        ("traces.pop()", "RR-ERR-003", "1 traces of 2 requests"),
        ("traces[0]['decisions'][0]['scores'][0] = 10**400", "RR-ERR-003", "no float holds"),
        ("traces[0]['decisions'][0]['scores'].pop()", "RR-ERR-003", "1 scores of 2 candidates"),
        ("traces[0]['decisions'][0]['selected'] = None", "RR-ERR-003", "is not of type 'array'"),
        ("traces[0]['decisions'][0]['selected'] = [7]", "RR-POOL-003", "no candidates"),
        ("traces[0]['decisions'][0].update(stage=1.0, selected=[float(i) for i in traces[0]['decisions'][0]['selected']])", "", ""),
        ("traces[0]['kv_rows'][1] += 1", "RR-KV-001", "rows cached"),
    ],
)  # fmt: skip
def test_a_run_of_another_form_is_the_targets_failure(scripted, judged, port, body, rule, words):
    preamble = WELL_BEHAVED[: WELL_BEHAVED.index("while True:\n    case")] + PROXY.replace("PORT", repr(port))
    target = scripted(f"    {body}\n    say(said)", preamble=preamble)
    verdict = judged("trace-cache", TRACE, target)
    assert [violation.rule for violation in verdict.violations][:1] == [rule][: len(rule)]
    assert not rule or words in verdict.violations[0].detail


def test_what_the_suite_says_is_of_the_documented_form(judged, port, monkeypatch):
    said = []
    monkeypatch.setattr("reroute_conformance.targets.command.line_of", lambda m: said.append(m) or line_of(m))
    target = CommandTarget(port)
    routed = replace(TRACE, decisions=[[[0]], [[0]]])
    cases = [
        ("select", SELECT),
        ("config", RIGHT),
        ("trace-cache", TRACE),
        ("route", routed),
        ("session", SESSION),
    ]
    for check, case in cases:
        assert judged(check, case, target).violations == []
    target.close()
    messages = [json.loads(line_of(message)) for message in said]
    assert [message.get("kind") for message in messages][1:-1] == [
        "select",
        "config",
        "trace",
        "route",
        "session",
    ]
    for message in messages:
        assert list(validator(message["type"]).iter_errors(message)) == []


def test_the_port_in_c_breaks_no_rule(vlm_reroute, port, tmp_path, monkeypatch):
    """On a few cases of every check; `make port` runs all of them, which is what CONFORMS takes."""
    fewer = tuple(replace(check, examples=min(check.examples, 4)) for check in checks())
    monkeypatch.setattr("reroute_conformance.running.runner.checks", lambda: fewer)
    code, out, _ = vlm_reroute("conform", "--cmd", port, "--report", str(tmp_path), "--json")
    header, *results, footer = (json.loads(line) for line in out.splitlines())
    assert header["target"] == "port-c"
    assert header["profiles"] == ["core", "stagewise", "gqa", "mrope", "batch", "cache", "session"]
    assert [record for record in results if "failure" in record or "skipped" in record] == []
    assert (footer["verdict"], code) in (("CONFORMS", 0), ("INCOMPLETE", 2))


def test_a_broken_port_fails_with_its_rule_and_a_case_to_replay(vlm_reroute, port, tmp_path, monkeypatch):
    ties = "return a->place < b->place ? -1 : 1;"
    broken = build(tmp_path / "a port", ties, ties.replace("<", ">"))
    monkeypatch.setattr("reroute_conformance.running.runner.checks", lambda: (CHECKS["select"],))
    arguments = ("--cmd", shlex.quote(broken), "--timeout", "30", "--report", str(tmp_path / "my report"))
    code, out, _ = vlm_reroute("conform", *arguments)
    assert code == 1
    assert out.strip().endswith("FAILS: RR-SEL-003")
    line = next(line for line in out.splitlines() if "replay: " in line)
    command = shlex.split(line.split("replay: vlm-reroute ")[1])
    assert command[2:] == ["--timeout", "30", "--cmd", shlex.quote(broken)]
    code, out, _ = vlm_reroute(*command)
    assert code == 1
    assert "RR-SEL-003  Ties go to the lower ordinal" in out
    assert vlm_reroute(*command[:-1], port)[0] == 0


@pytest.mark.parametrize(
    ("old", "new", "check", "rule"),
    [
        ("if (active[row])\n", "if (row >= 0 || active[row])\n", "trace", "RR-KV-001"),
        ("position = held->next[held->since];", "position = held->cache[d->num_layers - 1].rows;", "trace-cache", "RR-KV-004"),
        ("            return false;\n    for", "            rows = batch->held[i].since;\n    for", "session", "RR-KV-009"),
        ("int before = r->cache[layer].rows;", "int before = 0;", "session", "RR-KV-007"),
        ("batch->held[i / times];", "batch->held[i % batch->count];", "session", "RR-KV-010"),
        ("held->since - rows, held->next}", "held->since, held->next}", "session", "RR-KV-004"),
        ("r->schedule->survivors ? r->chosen[v] : true", "true", "trace-delete", "RR-POOL-004"),
        ("    if (!keep->is_count) {", "    if (!keep->is_count && n == 100) {\n        rows = 28;\n    } else if (!keep->is_count) {", "budgets", "RR-BUD-001"),
    ],
)  # fmt: skip
def test_what_a_port_gets_wrong_is_named(tmp_path, old, new, check, rule):
    target = CommandTarget(build(tmp_path / "port-c", old, new))
    result = run_check(CHECKS[check], target, shrink=False)
    target.close()
    assert result.failure is not None
    assert result.failure.violation.rule == rule


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "reference", "--cmd", "true"], "are both given"),
        (["--cmd", "true"], "instead of an answer"),
        (["--cmd", "true", "--timeout", "0"], "give a number above 0"),
        (["--cmd", "true", "--timeout", "inf"], "give a number above 0"),
    ],
)
@pytest.mark.parametrize("command", [["conform"], ["replay", "case.json"]])
def test_wrong_usage_is_one_error_and_exit_code_3(vlm_reroute, command, arguments, words):
    code, out, err = vlm_reroute(*command, *arguments)
    assert (code, out) == (3, "")
    assert words in err


def test_a_command_may_say_what_it_cannot_be_asked_for_here(scripted):
    said = WELL_BEHAVED.replace(
        '"dtypes": ["float32"]', '"dtypes": ["float32"], "unavailable": {"core": "no device"}'
    )
    target = scripted("", preamble=said + "    os._exit(7)")
    report = run_suite(target)
    assert report.verdict == INCOMPLETE
    assert report.reasons == {"profile core": "no device"}
    with pytest.raises(RerouteError, match="quantum"):
        scripted("", preamble=said.replace('{"core"', '{"quantum"') + "    os._exit(7)")
