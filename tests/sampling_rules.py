"""Sampling parameters of every kind that each sampler must follow alike."""

from kiloq.generate.params import SamplingParams

PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=1.7, top_k=5),
    SamplingParams(top_k=1),
    SamplingParams(top_k=700),
    SamplingParams(top_p=0.8),
    SamplingParams(top_p=0.0),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.1),
    SamplingParams(min_p=0.1),
    SamplingParams(top_p=0.95, min_p=0.02),
    SamplingParams(temperature=2.0, top_k=30, top_p=0.95, min_p=0.02),
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(repetition_penalty=0.8, presence_penalty=0.5, frequency_penalty=0.25),
    SamplingParams(logit_bias={3: 5.0, 7: -100.0}, top_p=0.9),
    SamplingParams(temperature=0, repetition_penalty=1.5, frequency_penalty=3.0),
]
