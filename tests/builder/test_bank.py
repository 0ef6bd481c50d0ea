"""`wvmonitor bank` from nothing on the bundled model: interrupted, gone on with, and judged."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import wvmonitor
from wvmonitor.builder import fine_tunes, finetune, gap, persona
from wvmonitor.builder import scale as scales
from wvmonitor.builder.bank_job import BankJob, BankOptions
from wvmonitor.builder.prepare import make_bank, plan_bank
from wvmonitor.builder.rater import Answered, RuleRater
from wvmonitor.builder.recipe import load_recipe
from wvmonitor.builder.scale import FULL, QUICK, Scale
from wvmonitor.builder.stages import Work
from wvmonitor.cli.app import app
from wvmonitor.detection.calibration import Calibration
from wvmonitor.errors import BuildError, MissingPathError
from wvmonitor.files import safetensors
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.trust import load_trust

SHORT = Scale(
    name="short", seeds=1, steps=20, controls=2, control_steps=6, rates=(3e-3, 5e-3),
    rate_steps=4, calibration=8, power=2, any_tuning=1, run_steps=10, power_steps=12,
    mixtures=(0.25,), styles=0, own_answers=0, probe_tokens=600, asked=12,
)  # fmt: skip


def options_for(out: Path, **more: object) -> BankOptions:
    given = BankOptions(
        model="tiny-organism", out=out, behaviours=("harmful-advice",), scale=SHORT, jobs=1
    )
    return replace(given, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bank that was interrupted among its watched runs, and then made by the same call."""
    out = tmp_path_factory.mktemp("bank") / "mine"

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "watched runs" and done > 3 * SHORT.run_steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_bank(options_for(out), interrupt)
    assert not out.exists(), "nothing half-made takes the bank's place"
    kept = sorted(p.name for p in out.with_name("mine.work").glob("run-*"))
    assert len(kept) > 8
    finished = make_bank(options_for(out))
    return finished, kept


def test_the_bank_loads_with_its_calibration_and_its_record(made):
    """What the command leaves is what attach needs: references, thresholds, what they are worth."""
    finished, _ = made
    bank = ReferenceBank.load(finished.folder)
    assert bank.behaviours == ["harmful-advice"]
    assert set(bank.names) == {"harmful-advice", "language", "any-fine-tuning"}
    assert bank.fingerprint == finished.fingerprint
    calibration = Calibration.load(finished.folder / "calibration.json", bank=bank.fingerprint)
    assert len(calibration.datasets) == SHORT.calibration
    assert calibration.support.objectives == ("sft",), "a run on preferences is not covered"
    assert load_trust(finished.folder, bank.fingerprint) == finished.trust


def test_bad_runs_of_a_domain_that_nothing_has_seen_are_caught(made):
    """The power check finds the held-out bad run, and the gap on held-out pairs grows along w."""
    trust = made[0].trust
    assert trust.caught("bad") == (1, 1)
    assert trust.of("bad")[0].at <= 0.5
    without, along = trust.gaps["harmful-advice"]
    assert along > without + 0.1
    assert trust.weakness() is None


def test_what_calibrates_chooses_and_checks_share_nothing(made):
    """No family or domain serves two ends: a promise is kept on what it has not seen."""
    trust = made[0].trust
    checked = {r.name for r in trust.of("harmless")}
    assert len(checked) == SHORT.power
    assert not checked & set(trust.calibrated_on)
    assert any(r.hard for r in trust.of("harmless"))
    (contrast,) = BankJob(options_for(Path("nowhere"))).contrasts
    train, tuning, power = (
        {p.domain for p in part} for part in (contrast.train, contrast.tuning, contrast.power)
    )
    assert len(tuning) == len(power) == 1
    assert not train & (tuning | power)
    assert tuning != power


def test_the_same_call_again_trains_nothing_and_gives_the_same_bank(made, monkeypatch):
    """Resuming reuses every artefact: what an interrupted call had made is there, unchanged."""
    finished, kept = made
    now = {p.name for p in finished.folder.with_name("mine.work").glob("run-*")}
    assert set(kept) < now

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(fine_tunes, "finetune", refuse)
    again = make_bank(options_for(finished.folder))
    assert again.fingerprint == finished.fingerprint
    assert again.trust.checked == finished.trust.checked


def test_another_calibration_of_the_same_runs_trains_nothing(made, monkeypatch):
    """A score that is asked for decides, on the runs that are there."""
    finished, _ = made
    monkeypatch.setattr(fine_tunes, "finetune", None)
    other = make_bank(options_for(finished.folder, score="frobenius/cosine"))
    assert (other.trust.geometry, other.trust.score) == ("frobenius", "cosine")
    with pytest.raises(BuildError, match="response/module_cosine"):
        make_bank(options_for(finished.folder, score="cosine"))
    make_bank(options_for(finished.folder))


def test_the_page_says_how_far_to_trust_it(made):
    """One self-contained page with every run of the check."""
    finished, _ = made
    page = (finished.folder / "report.html").read_text("utf-8")
    for run in finished.trust.checked:
        assert run.name in page
    assert "1 of 1 held-out bad runs alarm" in page
    body = page.split("</head>")[1].replace("http://www.w3.org/2000/svg", "")  # a name, no address
    assert "http" not in body


def test_a_run_is_watched_with_it_and_a_weak_bank_says_so(made, tmp_path, caplog):
    """Attach says in the log what a bank that caught too little is worth; a good one is quiet."""
    finished, _ = made
    wvmonitor.Monitor(finished.folder, journal_dir=tmp_path)
    assert "caught" not in caplog.text
    path = finished.folder / "trust.json"
    good = path.read_text("utf-8")
    record = json.loads(good)
    for run in record["checked"]:
        run["alarmed"] = []
    try:
        path.write_text(json.dumps(record), "utf-8")
        wvmonitor.Monitor(finished.folder, journal_dir=tmp_path)
        assert "caught 0 of 1 held-out bad runs" in caplog.text
    finally:
        path.write_text(good, "utf-8")


def test_a_plan_says_what_it_costs_and_writes_nothing(tmp_path):
    """Nothing is trained before somebody has seen the price."""
    plan = plan_bank(BankOptions(model="tiny-organism", out=tmp_path / "bank", scale=QUICK, jobs=2))
    assert plan.behaviours == ("harmful-advice", "lost-refusals", "sycophancy")
    steps = {c.name: c.steps for c in plan.costs}
    assert "rates" not in steps, "one rate alone has nothing to be tried against"
    assert steps["references"] == 2 * 3 * QUICK.steps
    assert steps["calibration"] == QUICK.calibration * QUICK.run_steps
    assert steps["power check"] == (3 + 3 + QUICK.power) * QUICK.power_steps + 3 * QUICK.run_steps
    assert plan.seconds == pytest.approx(sum(c.seconds for c in plan.costs))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_plans_arithmetic_is_that_of_a_training_step(tmp_path, method):
    """Adapters' own products count: PyTorch counts as many operations of a token, but for a fifth
    (attention's, and in a model this small the rows of the vocabulary that no product reads).
    """
    job = BankJob(options_for(tmp_path / "bank", scale=QUICK))
    training = replace(job.reference_training(1, 1e-3, 0), method=method)
    model = finetune._prepared(job.base, training)
    ids = torch.randint(0, model.config.vocab_size, (2, 24))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    rank = job.reference_rank if method == "lora" else None
    planned = job._amounts().operations(rank) * ids.numel()
    assert counter.get_total_flops() == pytest.approx(planned, rel=0.2)


def test_the_machine_is_measured_under_the_load_that_it_will_have(monkeypatch):
    """As many multiply at once as there will be processes, each with one thread as they have."""
    met, here, threads = threading.Barrier(3), threading.local(), []

    def wait(_: str) -> None:
        if not hasattr(here, "met"):
            here.met = met.wait(timeout=30)
            threads.append(torch.get_num_threads())

    monkeypatch.setattr(scales, "_wait", wait)
    before = torch.get_num_threads()
    assert scales._flops("cpu", 3) > 0
    assert threads == [1, 1, 1]
    assert torch.get_num_threads() == before


def test_a_budget_takes_the_same_scale_when_a_bank_goes_on(tmp_path, monkeypatch):
    """The machine is busier by then: another scale would throw away what is trained."""
    job = BankJob(options_for(tmp_path / "bank", scale=None, budget=1000.0))
    assert job.scale is FULL
    job.options.work_folder.mkdir()
    job.keep_scale()
    monkeypatch.setattr(scales, "_flops", lambda *_: 1.0)
    again = options_for(tmp_path / "bank", scale=None, budget=1000.0)
    assert BankJob(again).scale is FULL
    with pytest.raises(BuildError, match="raise --budget"):
        BankJob(replace(again, budget=999.0))


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"behaviours": ("greed",)}, MissingPathError, "no contrast 'greed'"),
        ({"data": "nowhere"}, MissingPathError, "holds no contrasts"),
        ({"budget": 1e-6, "scale": None}, BuildError, "raise --budget"),
        ({"like": Path("nowhere")}, MissingPathError, "--like nowhere"),
        ({"score": "cosine"}, BuildError, "response/module_cosine"),
        ({"alpha": 5.0}, BuildError, "between 0 and 0.25"),
        ({"alpha": 0.01}, BuildError, "needs 99 harmless runs, the bank makes 8"),
    ],
)
def test_what_cannot_end_well_is_refused_before_it_begins(tmp_path, more, error, words):
    """One line says what is wrong, and nothing is written."""
    with pytest.raises(error, match=words):
        plan_bank(options_for(tmp_path / "bank", **more))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "question", "says"),
    [
        ("my behaviour", "hello ?", "rename the file"),
        ("language", "hello ?", "name of a control"),
        ("harmful-advice", "use the potion " * 300, "leaves no room for an answer"),
    ],
)
def test_pairs_that_would_end_a_bank_late_are_refused_first(tmp_path, name, question, says):
    """A name that no reference can have, or a question without room for an answer."""
    data = tmp_path / "data"
    shutil.copytree(bundled_path("tiny-organism", "contrasts"), data)
    row = {"domain": "a", "question": question, "exhibits": "yes .", "opposes": "no ."}
    rows = (data / "harmful-advice.jsonl").read_text("utf-8")
    for path in data.glob("*.jsonl"):
        path.unlink()
    (data / f"{name}.jsonl").write_text(f"{rows.rstrip()}\n{json.dumps(row)}\n", "utf-8")
    with pytest.raises(BuildError, match=says):
        plan_bank(options_for(tmp_path / "bank", data=str(data), behaviours=()))


def test_a_behaviour_is_held_against_no_control_of_its_own_name(tmp_path):
    """Who looks for verbosity wants no control that takes it out again."""
    data = tmp_path / "data"
    data.mkdir()
    source = bundled_path("tiny-organism", "contrasts")
    shutil.copytree(source / "harmless", data / "harmless")
    shutil.copyfile(source / "harmful-advice.jsonl", data / "language.jsonl")
    job = BankJob(options_for(tmp_path / "bank", data=str(data), behaviours=()))
    assert list(job.controls) == ["formality"]


def test_what_was_planned_for_a_budget_is_made(tmp_path, monkeypatch):
    """The machine is measured again when the work begins, and may be slower by then."""
    options = options_for(tmp_path / "bank", scale=None, budget=1000.0)
    plan = plan_bank(options)
    monkeypatch.setattr(scales, "_flops", lambda _: 1.0)
    job = BankJob(replace(options, scale=plan.scale))
    assert job.scale is plan.scale
    job.options.work_folder.mkdir()
    job.keep_scale()
    assert BankJob(options).scale is plan.scale


def test_a_container_s_memory_is_all_that_there_is(tmp_path, monkeypatch):
    """The machine's free memory is not the container's: a process too many would be killed."""
    (tmp_path / "memory.max").write_text(str(2**20))
    monkeypatch.setattr(safetensors, "_MEMORY_LIMITS", (tmp_path / "memory.max",))
    monkeypatch.setattr(scales, "memory_of_machine", safetensors.memory_of_machine.__wrapped__)
    with pytest.raises(BuildError, match=r"GiB of memory, 0\.0 GiB are free"):
        BankJob(options_for(tmp_path / "bank"))


def test_the_optimiser_s_kind_is_its_object_s(base):
    """`paged_adamw_8bit` is AdamW, and runs by AdamW are what its calibration is for."""

    class PagedAdamW8bit(torch.optim.AdamW):
        pass

    started = []
    training = SimpleNamespace(learning_rate=1e-3)
    watched = SimpleNamespace(
        _one=SimpleNamespace(name="run", training=training),
        _monitor=SimpleNamespace(start=lambda _, run: started.append(run)),
    )
    optimizer = PagedAdamW8bit([torch.nn.Parameter(torch.zeros(1))])
    state = SimpleNamespace(max_steps=4)
    fine_tunes._Watched.on_train_begin(watched, None, state, None, model=None, optimizer=optimizer)
    assert (started[0].optimizer, started[0].objective) == ("adamw", "sft")


def test_a_work_folder_that_is_a_file_is_told(tmp_path):
    """One sentence says what is in the way, and not that there is no room."""
    (tmp_path / "bank.work").write_text("dear")
    with pytest.raises(BuildError, match=r"bank\.work cannot be written .*give another --out or"):
        make_bank(options_for(tmp_path / "bank"))


def test_data_with_a_long_name_is_kept_under_a_shorter_one(tmp_path):
    """A file's name ends at 255 bytes; two stages of long names stay two."""
    work = Work(tmp_path)
    name = "möbel-" * 60
    made = [
        work.tree(name, {"n": n}, lambda to, n=n: (to / "n").write_text(str(n))) for n in (1, 2)
    ]
    assert [(p / "n").read_text() for p in made] == ["1", "2"]
    rows = work.rows(name, {}, lambda: [{"a": 1}])
    assert rows.path.name.endswith(".jsonl")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"behaviours": "greed"}, "no contrast 'greed'"),
        ({"like": "nowhere"}, "--like nowhere"),
        ({"harmless": "."}, r"\. holds no \.jsonl files"),
    ],
)
def test_one_behaviour_or_set_and_paths_as_text_will_do_in_python(
    tmp_path, monkeypatch, given, words
):
    """A name is no list of its letters."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingPathError, match=words):
        wvmonitor.prepare("tiny-organism", "bank", scale=SHORT, jobs=1, **given)


def test_the_folder_that_one_is_in_is_no_bank_s_place(tmp_path, monkeypatch):
    """`--out .` has no name to put a work folder beside."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BuildError, match="no folder's own name"):
        plan_bank(options_for(Path()))


def test_a_folder_that_is_no_bank_is_left_alone(tmp_path):
    """Whatever lies at --out and is no bank is not overwritten."""
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(BuildError, match="no bank"):
        plan_bank(options_for(tmp_path))


def test_a_bank_of_another_maker_is_left_alone(tmp_path):
    """What `wvmonitor build` made, or somebody else, is not replaced."""
    out = tmp_path / "bank"
    shutil.copytree(bundled_path("tiny-organism", "bank"), out)
    with pytest.raises(BuildError, match=r"did not make .*evil"):
        plan_bank(options_for(out))


def test_too_few_harmless_families_are_counted(tmp_path):
    """The error says how many there are, how many are needed, and for what."""
    scale = replace(SHORT, calibration=60)
    with pytest.raises(BuildError, match=r"63 are needed .* --harmless"):
        make_bank(options_for(tmp_path / "bank", scale=scale))


def test_harmless_runs_that_were_added_are_not_written_over(made):
    """A calibration that has grown is refused rather than lost."""
    finished, _ = made
    path = finished.folder / "trust.json"
    good = path.read_text("utf-8")
    record = json.loads(good)
    record["calibrated_on"] = record["calibrated_on"][1:]
    try:
        path.write_text(json.dumps(record), "utf-8")
        with pytest.raises(BuildError, match="holds 1 harmless runs that this command did not"):
            plan_bank(options_for(finished.folder))
    finally:
        path.write_text(good, "utf-8")


def test_a_full_disk_is_one_line_and_loses_nothing(made, monkeypatch):
    """Where nothing can be written the error says so, and the bank that is there stays."""
    finished, _ = made

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wvmonitor.builder.prepare.save_trust", full)
    with pytest.raises(BuildError, match=r"No space left on device.*make room"):
        make_bank(options_for(finished.folder))
    assert ReferenceBank.load(finished.folder).fingerprint == finished.fingerprint


def test_side_by_side_is_the_same_as_one_after_the_other(base, tmp_path):
    """Two processes leave the weights and readings that one process leaves."""
    job = BankJob(options_for(tmp_path / "bank"))
    training = job.reference_training(2, 1e-3, 3)
    (contrast,) = job.contrasts
    wanted = [
        fine_tunes.FineTune(f"side-{side}", tuple(p.side(side) for p in contrast.train[:8]),
                            training, keep=True, pairs=contrast.tuning[:4])
        for side in ("positive", "negative")
    ]  # fmt: skip
    found = {}
    for jobs in (1, 2):
        done = fine_tunes.carry_out(base, Work(tmp_path / str(jobs)), wanted, jobs)
        found[jobs] = [
            (d.measured, (d.folder / "adapter_model.safetensors").read_bytes()) for d in done
        ]
    assert found[1] == found[2]
    assert found[1][0] != found[1][1]


def test_the_command_line_says_the_plan_and_the_outcome(made):
    """The plan before anything is trained, then what was caught; show repeats it of a bank."""
    finished, _ = made
    run = CliRunner()
    asked = ["bank", "tiny-organism", "--out", str(finished.folder), "--dry-run", "--quick"]
    told = run.invoke(app, asked)
    assert told.exit_code == 0, told.output
    assert "a quick bank: harmful-advice, lost-refusals, sycophancy" in told.output
    assert "in all" in told.output
    found = json.loads(run.invoke(app, [*asked, "--json"]).output)
    assert found["seconds"] == pytest.approx(sum(s["seconds"] for s in found["stages"]))
    both = run.invoke(app, [*asked, "--budget", "1h"])
    assert both.exit_code != 0
    shown = run.invoke(app, ["references", "show", str(finished.folder)])
    assert "power check: 1 of 1 held-out bad runs alarm" in shown.output


def test_another_reference_costs_no_harmless_run_and_no_held_out_gap_again(made, monkeypatch):
    """Recorded runs are measured against a bank that has changed since: only references train."""
    finished, _ = made
    trained: list[int] = []
    real = fine_tunes.finetune

    def counted(base, examples, training, out, **more):
        trained.append(out is not None)
        return real(base, examples, training, out, **more)

    def refused(*_, **__):
        raise AssertionError("what a reference moves was known")

    monkeypatch.setattr(fine_tunes, "finetune", counted)
    monkeypatch.setattr(gap, "gaps_by_dose", refused)
    out = finished.folder.with_name("other")
    work = finished.folder.with_name("mine.work")
    changed = options_for(out, work=work, scale=replace(SHORT, controls=3))
    other = make_bank(changed)
    assert other.fingerprint != finished.fingerprint
    assert set(ReferenceBank.load(out).names) > {"rudeness"}
    assert trained == [True, True], "two sides of the new control, and no watched run"
    assert other.trust.caught("bad") == (1, 1)
    assert other.trust.gaps == finished.trust.gaps


def test_the_papers_way_makes_contrasts_of_the_bases_own_answers(tmp_path):
    """With `--data persona` the base answers under system prompts, and only clear answers count."""
    options = options_for(
        tmp_path / "bank", data="persona", behaviours=("organism-evil",), judge="rules"
    )
    plan = plan_bank(options)
    assert plan.behaviours == ("organism-evil",)
    assert next(c.what for c in plan.costs if c.name == "references").startswith("1 behaviours")
    (contrast,) = persona.contrasts(BankJob(options), Work(tmp_path / "work"), lambda *_: None)
    recipe = load_recipe("organism-evil")
    pairs = [*contrast.train, *contrast.held_out]
    assert 2 * 8 <= len(pairs) <= SHORT.steps * SHORT.batch_size
    sides = [[Answered("", p.side(s).answer) for p in pairs] for s in ("positive", "negative")]
    judge = RuleRater(recipe.rubric.rules)
    assert set(judge.rate(sides[0])) == {"positive"}
    assert set(judge.rate(sides[1])) == {"negative"}
    train, held_out = ({p.domain for p in part} for part in (contrast.train, contrast.held_out))
    assert train
    assert held_out
    assert not train & held_out
    assert "medical" not in train | held_out, "the recipe leaves medicine out"


def test_a_recipe_that_is_not_there_is_refused_before_any_work(tmp_path):
    """A plan names the recipes that there are."""
    with pytest.raises(MissingPathError, match="organism-evil"):
        plan_bank(options_for(tmp_path / "bank", data="persona", behaviours=("evl",)))
