"""A process that dies or stays away: the others say so, and soon."""

import pytest
import torch
from reroute_conformance.tiny import picture_inputs, tiny_llava

from .launch import launch


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dies", "stays away"])
def test_the_others_say_so_and_end(how, tmp_path):
    tiny_llava().save_pretrained(tmp_path / "llava")
    prompt = picture_inputs("user : <image> where is the red ball ? assistant :")
    inputs = {name: torch.cat([value, value]) for name, value in prompt.items()}
    torch.save({"llava": {"prefill": inputs}}, tmp_path / "inputs.pt")
    first, second = launch("departing.py", tmp_path, how, until=1)
    assert first.code == 0, first.said[-3000:]
    assert (
        "process group: another of the 2 processes died, or did not follow within the timeout" in first.said
    )
    # long before the group's timeout where it died, soon after it where it stays away: the script sets 90 and 3 s
    assert float(first.said.split("after ")[-1].split(" s:")[0]) < 45
    assert second.code == (17 if how == "dies" else -9)
