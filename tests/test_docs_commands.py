"""Every command of README and docs is run by a test, or says there what it needs, or takes long and is checked alone.

A command is a line of its own, or a span of code that begins with `python -m`. WAYS says of each how it is held:

    test_FILE::NAME   that test runs it, with a folder of its own for DIR, and smaller where it would take long
    needs             its line or its section says what it needs (weights, data, a GPU, a network); not run
    long              it takes minutes or hours: not run as it stands; its settings are checked, no more

The settings of every `evals.run` and `lactok.train` are checked against the real configuration, whatever else holds
them (those of evals.run by tests/test_docs.py).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

import pytest

from lactok.train.config import TrainConfigError, compose_config
from tests.support import ROOT
from tests.test_docs import PAGES

NEEDS = re.compile(r"\bneed(s|ed)?\b|\bdownloads\b|\binstalls?\b")
PLUGIN = "test_plugin_docs::test_the_lines_for_a_tokenizer_of_a_file_run"
RUNS = "test_runs_command::"
# The first that matches a command (its `python -m` left out) is its way.
WAYS = (
    (r"evals list tokenizers --markdown", "test_plugin_docs::test_the_page_of_tokenizers_is_up_to_date"),
    (r"evals list", "test_listing::test_every_list_fits_80_columns_and_cuts_no_word"),
    (r"(evals\.run|lactok\.train) --help", "test_commands::test_a_reader_that_goes_ends_a_command_quietly"),
    (r"evals compare RUN all=true out=DIR", "test_compare::test_pairs_as_files"),
    (r"evals compare RUN all=true", "test_compare::test_all_pairs_of_a_run_with_holms_p_values"),
    (r"evals compare RUN row=", "test_compare::test_two_tokenizers_of_a_real_run"),
    (r"evals compare (RUN RUN|RUN_A RUN_B)|evals compare$",
     "test_commands::test_rows_are_named_as_on_the_command_line"),
    (r"evals power", "test_compare::test_power_says_how_many_sources_tell_a_difference"),
    (r"evals check .*summary=", "test_check::test_a_summary_says_in_markdown_what_moved"),
    (r"evals check results/mini/geneval\.json", "long"),  # three minutes; geneval.json's config is composed below
    (r"evals check", "test_check::test_nothing_moves"),
    (r"evals results", "test_results_page::test_the_page_is_up_to_date"),
    (r"evals score prompts=", "test_score::test_images_of_prompts"),
    (r"evals score .*scale=paper", "needs"),
    (r"evals score .*pair=stem", "test_score::test_stems_and_tables_pair"),
    (r"evals score", "test_score::test_the_readme_s_lines_run"),
    (r"evals export .*every-eval-ever", "test_interchange::test_every_eval_ever"),
    (r"evals export .*eval-results", "test_interchange::test_the_hub_reads_its_files"),
    (r"evals export", "test_score::test_the_readme_s_lines_run"),
    (r"every_eval_ever validate", "test_interchange::test_the_validator_of_every_eval_ever_takes_the_files"),
    (r"evals runs list", RUNS + "test_runs_are_listed_and_what_is_none_is_named"),
    (r"evals runs name", RUNS + "test_a_run_gets_a_name"),
    (r"evals runs merge", RUNS + "test_rows_of_two_runs_are_one_table"),
    (r"evals runs prune", RUNS + "test_pruning_removes_what_no_run_refers_to_and_nothing_else"),
    (r"evals report results/runs/RUN", RUNS + "test_the_page_of_a_run_is_written_again"),
    (r"evals report table1", "test_tables::test_the_command_writes_the_table_and_says_what_is_missing"),
    (r"evals selftest", PLUGIN),
    (r"evals\.run tokenizers=\[\./", PLUGIN),
    (r"evals\.run .*CaptionedTokenizer",
     "test_told_items::test_the_tokenizer_of_the_docs_is_told_captions_and_no_other_is_touched"),
    (r"evals\.run tokenizers=\[average", "test_docs::test_the_tokenizer_of_the_docs_runs_as_written"),
    (r"evals\.run .*generators=clouds", "test_docs::test_the_generator_of_the_docs_runs_as_written"),
    (r"evals\.run .*gmsd", "test_docs::test_the_metric_of_the_docs_runs_as_written"),
    (r"evals\.run dataset=gradients", "test_docs::test_the_dataset_of_the_docs_is_measured"),
    (r"evals\.run dataset=folder", "test_packed_images::test_the_commands_of_the_docs_open_what_they_name"),
    (r"evals\.run suite=generate generators=folder", "test_image_folder::test_two_systems_are_judged_side_by_side"),
    (r"evals\.run suite=recon tokenizers=all", "test_wheel::test_the_main_job_runs_from_a_wheel"),
    (r"evals\.run tokenizers=llamagen limit=32", "long"),  # half a minute; its rows are those of test_nothing_moves
    (r"evals\.run suite=review", "long"),  # minutes; with toys: tests/test_review.py
    (r"evals\.run suite=geneval$", "long"),  # three minutes; on few prompts: tests/test_geneval.py
    (r"evals\.run suite=geneval .*dataset=prompts", "long"),  # three minutes
    (r"evals\.run suite=(ablation|table5 scale=mini)", "long"),  # minutes; their rows: tests/test_tables.py
    (r"evals\.run .*(scale=paper|weights=paper|suite=table|suite=preference|sd1\.5)", "needs"),
    (r"evals lint-paper", "test_paper_findings::test_the_command_prints_a_line_a_finding_and_agrees"),
    (r"evals data list", "test_paper_datasets::test_list_names_all_four"),
    (r"evals data get (coco|coco-val2017|coco-captions)( |$)", "test_download::test_get_of_coco_end_to_end"),
    (r"evals data get geneval", "test_published_prompts::test_get_of_geneval_end_to_end"),
    (r"evals data verify", "test_paper_datasets::test_verify_counts_decodes_and_fingerprints"),
    (r"evals data make-flux", "needs"),
    (r"evals judges install", "needs"),
    (r"evals judges failures", "test_geneval::test_scenes_are_judged_by_the_command_line"),
    (r"evals judges agreement", "test_geneval_agreement::test_the_judge_is_compared_where_detections_are"),
    (r"evals judges convert-mps", "needs"),
    (r"evals conformance", "test_conformance::test_one_broken_port_does_not_take_the_others_with_it"),
    (r"lactok\.generate", "test_generate_command::test_the_command_as_users_run_it"),
    (r"lactok\.data\.scenes", "test_scenes::test_the_command_writes_a_folder"),
    (r"lactok\.data build --plan",
     "test_data_plan::test_the_plan_is_the_docs_and_its_measured_speed_is_the_results"),
    (r"lactok\.data build recipe=paper", "needs"),
    (r"lactok\.data build", "test_data_build::test_the_books_are_exact_and_what_was_planted_is_found"),
    (r"lactok\.train .*dry_run=true", "long"),  # a minute: the real networks; tests/test_dry_run.py
    (r"lactok\.train recipe=generator data\.root=runs/tokens$",
     "test_generator_recipe::test_kill_and_the_same_command_give_the_same_bits"),
    (r"lactok\.train recipe=mini-all", "test_chain::test_without_a_choice_every_miniature_is_a_part"),
    (r"lactok\.train recipe=tokens data\.root=(scenes|shards|data)",
     "test_tokens_recipe::test_kill_and_the_same_command_give_the_same_bytes"),
    (r"lactok\.train recipe=vq \S*data\.root=(set|'?shards)",
     "test_tars::test_the_commands_of_the_docs_open_what_they_name"),
    (r"lactok\.train",
     "long"),  # minutes to hours; a few steps of each recipe: tests/test_train.py and the recipes' own
    (r"benchmarks/tokenizers\.py", "test_tokenizers_benchmark::test_the_others_run_too"),
    (r"benchmarks/engine\.py", "test_engine_benchmark::test_parts_are_exclusive"),
    (r"benchmarks/memory\.py", "test_engine_benchmark::test_memory_of_a_run_is_its_own_process_s"),
    (r"benchmarks/table1\.py", "test_engine_benchmark::test_table_ones_path_with_seeded_networks"),
    (r"benchmarks/generate\.py", "test_generation_benchmark::test_the_script_in_miniature"),
    (r"benchmarks/gpu\.py", "needs"),
    (r"benchmarks/duplicates\.py",
     "test_data_prints::test_the_benchmark_counts_what_is_found_and_what_is_taken_for_it"),
    (r"benchmarks/mini_steps\.py", "test_mini_steps::test_a_row_is_printed_for_each_recipe"),
)  # fmt: skip


@dataclass(frozen=True)
class Documented:
    """A command of a page. text: without its comment; near: its line and what its section says."""

    page: str
    text: str
    near: str

    @property
    def words(self) -> list[str]:
        """Its module or script, and what it is given."""
        words = shlex.split(re.sub(r" > .*|\.\.\.+$", "", self.text).replace("roots....", ""))
        return words[words.index("-m") + 1 :] if "-m" in words else words[1:]


def sections(text: str) -> list[str]:
    return re.split(r"^(?=#+ )", text, flags=re.MULTILINE)


def documented() -> list[Documented]:
    found = []
    for page in PAGES:
        for section in sections(page.read_text().replace("\\\n", " ")):
            lines = re.findall(r"^ {4,}((?:\S*python3?|torchrun) .*)$", section, re.MULTILINE)
            spans = [" ".join(span.split()) for span in re.findall(r"`(python -m [^`]+)`", section)]
            blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
            fenced = [part.strip() for block in blocks for part in block.split("&&")]
            for line in [*lines, *spans, *fenced]:
                command = re.sub(r" +# .*", "", line).strip()
                if re.search(r" -m (evals|lactok|every_eval)| benchmarks/", command):
                    found.append(Documented(page.name, command, f"{line}\n{section}"))
    return found


COMMANDS = documented()


def way_of(command: Documented) -> str | None:
    text = " ".join(command.words)
    return next((way for pattern, way in WAYS if re.match(pattern, text)), None)


def test_every_command_is_held_in_one_way() -> None:
    assert len(COMMANDS) > 110
    lacking = {f"{command.page}: {command.text}" for command in COMMANDS if way_of(command) is None}
    assert lacking == set(), "say in WAYS which test runs it, or in the docs what it needs"
    used = {way_of(command) for command in COMMANDS}
    assert {way for _, way in WAYS} - used == set(), "of no command"


@pytest.mark.parametrize("way", sorted({way for _, way in WAYS if way.startswith("test_")}))
def test_the_test_that_runs_a_command_is_there(way: str) -> None:
    file, _, name = way.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / f"{file}.py").read_text(), re.MULTILINE)


def test_what_is_not_run_says_what_it_needs() -> None:
    silent = {f"{c.page}: {c.text}" for c in COMMANDS if way_of(c) == "needs" and not NEEDS.search(c.near)}
    assert silent == set(), "write what it needs (weights, data, a GPU, a network) beside it"


def test_the_settings_of_every_training_are_those_that_there_are() -> None:
    """Parsed alone, since a training takes minutes to hours."""
    checked = 0
    for command in COMMANDS:
        module, *words = command.words
        if module != "lactok.train" or "--help" in words or "recipe=mini-all" in words or "..." in words:
            continue
        compose_config([*words, *([] if any(w.startswith("data.root=") for w in words) else ["data.root=DIR"])])
        checked += 1
    assert checked > 10
    with pytest.raises(TrainConfigError):
        compose_config(["recipe=vq", "data.rot=DIR"])
