// Sampler for Python: NumPy rows in, token ids out, the interpreter's lock released meanwhile.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/unordered_map.h>
#include <nanobind/stl/vector.h>

#include <limits>

#include "kernels_sampling.h"
#include "sampler.h"
#include "unlocked.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

int length(const Logits& logits) {
    if (logits.shape(0) > static_cast<size_t>(std::numeric_limits<int>::max() - kiloq::kSamplingBlock))
        throw std::length_error("a row has too many logits: token ids have 31 bits");
    return static_cast<int>(logits.shape(0));
}

int sample(const kiloq::Sampler& sampler, const Logits& logits, double uniform, const std::vector<int>& banned) {
    const int vocab = length(logits);
    const kiloq::Unlocked unlocked;
    std::vector<float> own(logits.data(), logits.data() + vocab);  // others may be reading the array
    return sampler.sample(own.data(), vocab, uniform, banned);
}

std::pair<double, std::vector<std::pair<int, double>>> logprobs(const kiloq::Sampler&, const Logits& logits, int token,
                                                                int count) {
    const int vocab = length(logits);
    const kiloq::Unlocked unlocked;
    kiloq::Logprobs result = kiloq::log_probabilities(logits.data(), vocab, token, count);
    return {result.chosen, std::move(result.best)};
}

void construct(kiloq::Sampler* self, double temperature, int64_t top_k, double top_p, double min_p,
               double repetition_penalty, double presence_penalty, double frequency_penalty,
               std::unordered_map<int64_t, double> logit_bias, const std::vector<int>& prompt) {
    new (self) kiloq::Sampler({.temperature = temperature,
                               .top_k = top_k,
                               .top_p = top_p,
                               .min_p = min_p,
                               .repetition_penalty = repetition_penalty,
                               .presence_penalty = presence_penalty,
                               .frequency_penalty = frequency_penalty,
                               .logit_bias = std::move(logit_bias)},
                              prompt);
}

}  // namespace

void bind_sampler(nb::module_& module) {
    const nb::object base = nb::module_::import_("kiloq.core.errors").attr("KiloqError");
    nb::exception<kiloq::LogitsError>(module, "LogitsError", base);
    nb::class_<kiloq::Sampler>(module, "Sampler", "Picks an answer's tokens by the rules of kiloq.generate.sampling.")
        .def("__init__", &construct, nb::kw_only(), "temperature"_a = 1.0, "top_k"_a = 0, "top_p"_a = 1.0,
             "min_p"_a = 0.0, "repetition_penalty"_a = 1.0, "presence_penalty"_a = 0.0, "frequency_penalty"_a = 0.0,
             "logit_bias"_a = nb::dict(), "prompt"_a = nb::list(),
             "The fields of SamplingParams, which checks them, and the prompt's token ids.")
        .def("sample", &sample, "logits"_a.noconvert(), "uniform"_a, "banned"_a = nb::list(),
             "The token that `uniform` in [0, 1) picks from float32 logits [V], which stay as they are; not yet "
             "counted. Raises LogitsError, a KiloqError, where they have no finite maximum.")
        .def("accept", &kiloq::Sampler::accept, "token"_a, "Counts a token of the answer.")
        .def("logprobs", &logprobs, "logits"_a.noconvert(), "token"_a, "count"_a,
             "(log-probability of `token`, [(id, log-probability)] of the `count` likeliest), of the raw logits [V].")
        .def("fork", [](const kiloq::Sampler& self) { return self; }, "A copy, for another answer to the same prompt.");
}
