"""What the site takes from the rest of the repository: chapters, READMEs, and pages that are made from the code.

A page is written for the repository, where its links are followed too: relative links are turned into links of the site, numbers of
rules into links to their rule, and a file that is no page is put on the site as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from generate import api, commands, errors, text
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "spec/README.md": "spec/index.md",
    "spec/INDEX.md": "spec/rules.md",
    "spec/FORMATS.md": "spec/formats.md",
    "spec/ERRATA.md": "spec/errata.md",
    "spec/proofs/README.md": "spec/proofs.md",
    "spec/proofs/counterexample.md": "spec/counterexample.md",
    "reference/README.md": "inside/reference.md",
    "optimized/README.md": "inside/optimized.md",
    "view/README.md": "inside/view.md",
    "conformance/README.md": "inside/conformance.md",
    "benchmarks/README.md": "inside/benchmarks.md",
    "benchmarks/grounding/README.md": "inside/grounding.md",
    "examples/port-c/README.md": "inside/port-c.md",
}
"""Files of the repository that are pages, beside the chapters of ``spec/`` and what is in ``docs/``."""
MADE = {"reference/errors.md": errors.page, "reference/commands.md": commands.page, **api.PAGES}
"""Pages that are made from the code: what makes them."""

_places: dict[str, str] = {}  # page of the site: the file of the repository that it is made of


def on_files(files: Files, config: Any) -> Files:
    """Add pages, and the files that pages link to."""
    chapters = {path.relative_to(ROOT).as_posix(): f"spec/{path.name}" for path in ROOT.glob("spec/*.md")}
    for place, page in {**chapters, **PAGES}.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / place)))
        _places[page] = place
    for page, make in MADE.items():
        files.append(File.generated(config, page, content=make(ROOT)))
        _places[page] = f"docs/{page}"
    for file in files.documentation_pages():
        _places.setdefault(file.src_uri, f"docs/{file.src_uri}")
    for file in list(files.documentation_pages()):
        for target in text.targets(file.content_string, _places[file.src_uri]):
            if target not in _places.values() and (ROOT / target).is_file():
                raw = text.raw(target)
                if raw not in files.src_uris:
                    files.append(File.generated(config, raw, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The page as the site has it."""
    pages = {place: uri for uri, place in _places.items()}
    return text.site(markdown, _places[page.file.src_uri], page.file.src_uri, pages, ROOT)
