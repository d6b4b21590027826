"""Requests as tests write them: several prompts with the same settings."""

from handscroll.generate import beam
from handscroll.generate import decode as decoding
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling


def requests(prompts, sampling, eos=(), drafts=None, **fields):
    return [Request(prompt, sampling, ends=frozenset(eos), draft=drafts, **fields) for prompt in prompts]


def decode(model, prompts, sampling, eos=(), tokenizer=None, **fields):
    return decoding.decode(model, requests(prompts, sampling, eos, **fields), tokenizer)


def beam_search(model, prompt, beams, max_tokens, eos=(), count=1, penalty=1.0, early="bound", **fields):
    request = Request(prompt, Sampling(max_tokens=max_tokens), count, ends=frozenset(eos), **fields)
    return beam.beam_search(model, request, beam.Beams(beams, penalty, early))
