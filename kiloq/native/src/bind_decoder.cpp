// Python's view of weights, decoder and sequences. Everything that takes long releases the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <stdexcept>

#include "blocks.h"
#include "cpu.h"
#include "decoder.h"
#include "pack.h"
#include "unlocked.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kiloq {
namespace {

template <class T>
using Rows = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using AnyRows = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu, nb::ro>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
T named(const std::map<std::string, T>& names, const std::string& name) {
    const auto found = names.find(name);
    if (found == names.end()) throw std::invalid_argument("unknown name '" + name + "'");
    return found->second;
}

Format format_of(const std::string& name) {
    return named<Format>({{"fp32", Format::fp32}, {"bf16", Format::bf16}, {"int8", Format::int8}, {"int4", Format::int4}}, name);
}
Offset offset_of(const std::string& name) {
    return named<Offset>({{"none", Offset::none}, {"zero", Offset::zero}, {"minimum", Offset::minimum}}, name);
}
CacheFormat cache_format_of(const std::string& name) {
    return named<CacheFormat>({{"fp32", CacheFormat::fp32}, {"bf16", CacheFormat::bf16}, {"int8", CacheFormat::int8}}, name);
}
Source source_of(const std::string& name) {
    return named<Source>({{"fp32", Source::fp32}, {"bf16", Source::bf16}, {"fp16", Source::half}}, name);
}
Blocks blocks_of(const std::string& name) {
    return named<Blocks>({{"Q4_0", Blocks::q4_0}, {"Q4_1", Blocks::q4_1}, {"Q8_0", Blocks::q8_0}}, name);
}

void check_range(const Matrix& m, int first, size_t count, size_t columns) {
    if (first < 0 || count > static_cast<size_t>(m.rows) || static_cast<size_t>(first) > m.rows - count ||
        columns != static_cast<size_t>(m.columns)) {
        throw std::invalid_argument("these rows do not fit into the matrix");
    }
}

void put_codes(MatrixBuilder& self, int first, const Rows<uint8_t>& codes, const Rows<uint16_t>& scales,
               const std::optional<Rows<uint8_t>>& zeros, const std::optional<Rows<uint16_t>>& minimums, int threads) {
    const Matrix& m = self.matrix();
    const size_t count = codes.shape(0), groups = static_cast<size_t>(m.groups);
    check_range(m, first, count, codes.shape(1));
    const auto fits = [&](const auto& array) { return array.shape(0) == count && array.shape(1) == groups; };
    if (!m.quantised() || !fits(scales) || zeros.has_value() != (m.offset == Offset::zero) || (zeros && !fits(*zeros)) ||
        minimums.has_value() != (m.offset == Offset::minimum) || (minimums && !fits(*minimums))) {
        throw std::invalid_argument("codes, scales and offsets do not fit the matrix's format");
    }
    const uint8_t* zero_data = zeros ? zeros->data() : nullptr;
    const uint16_t* minimum_data = minimums ? minimums->data() : nullptr;
    const Unlocked unlocked;
    Team::Turn turn(threads);
    const int rows = static_cast<int>(count);
    share_out(turn.team(), (rows + kBlockRows - 1) / kBlockRows, [&](int piece) {
        const int begin = piece * kBlockRows, end = std::min(rows, begin + kBlockRows);
        self.put_codes(first + begin, end - begin, codes.data() + begin * codes.shape(1), scales.data() + begin * groups,
                       zero_data ? zero_data + begin * groups : nullptr,
                       minimum_data ? minimum_data + begin * groups : nullptr);
    });
}

bool put_block_rows(MatrixBuilder& self, int first, const Rows<uint8_t>& blocks, const std::string& kind_name, int threads) {
    const Blocks kind = blocks_of(kind_name);
    const size_t width = blocks.shape(1);
    if (!holds(self.matrix(), kind) || width % bytes_of(kind) != 0) {
        throw std::invalid_argument("these blocks do not fit the matrix's format");
    }
    check_range(self.matrix(), first, blocks.shape(0), width / bytes_of(kind) * self.matrix().group);
    std::atomic<bool> finite{true};
    const Unlocked unlocked;
    Team::Turn turn(threads);
    const int rows = static_cast<int>(blocks.shape(0));
    share_out(turn.team(), (rows + kBlockRows - 1) / kBlockRows, [&](int piece) {
        const int begin = piece * kBlockRows, end = std::min(rows, begin + kBlockRows);
        if (!put_blocks(self, first + begin, end - begin, blocks.data() + begin * width, kind)) finite = false;
    });
    return finite;
}

bool put_numbers(MatrixBuilder& self, int first, const AnyRows& numbers, const std::string& source_name, int threads) {
    const Source source = source_of(source_name);
    check_range(self.matrix(), first, numbers.shape(0), numbers.shape(1));
    const size_t element = source == Source::fp32 ? 4 : 2;
    if (numbers.itemsize() != element) throw std::invalid_argument("the numbers are not of the type that is named");
    const char* data = static_cast<const char*>(numbers.data());
    std::atomic<bool> finite{true};
    const Unlocked unlocked;
    Team::Turn turn(threads);
    const int rows = static_cast<int>(numbers.shape(0));
    share_out(turn.team(), (rows + kBlockRows - 1) / kBlockRows, [&](int piece) {
        const int begin = piece * kBlockRows, end = std::min(rows, begin + kBlockRows);
        const bool good = self.put_numbers(first + begin, end - begin, data + begin * numbers.shape(1) * element, source);
        if (!good) finite = false;
    });
    return finite;
}

std::vector<float> floats(nb::handle object) {
    if (object.is_none()) return {};
    const auto array = nb::cast<nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(object);
    return {array.data(), array.data() + array.shape(0)};
}

// {"parts": [Matrix], "biases": [float32 array or None], "order": int32 array or None}
Linear linear_of(const nb::dict& given) {
    Linear out;
    for (nb::handle part : given["parts"]) out.parts.push_back(nb::cast<const MatrixBuilder&>(part).matrix());
    int index = 0;
    for (nb::handle entry : given["biases"]) {
        const std::vector<float> bias = floats(entry);
        if (!bias.empty()) {
            out.bias.resize(out.width());
            if (bias.size() != static_cast<size_t>(out.parts.at(index).rows)) throw std::invalid_argument("a bias does not fit its matrix");
            std::copy(bias.begin(), bias.end(), out.bias.begin() + out.start(index));
        }
        ++index;
    }
    if (!given["order"].is_none()) {
        const auto order = nb::cast<Ids>(given["order"]);
        out.order.assign(order.data(), order.data() + order.shape(0));
        std::vector<int> sorted = out.order;
        std::sort(sorted.begin(), sorted.end());
        for (size_t i = 0; i < sorted.size(); ++i) {
            if (sorted[i] != static_cast<int>(i)) throw std::invalid_argument("the order of columns is no permutation");
        }
        if (sorted.size() != static_cast<size_t>(out.columns())) throw std::invalid_argument("the order of columns does not fit");
    }
    for (const Matrix& part : out.parts) {
        if (part.columns != out.columns()) throw std::invalid_argument("matrices of one map differ in their columns");
    }
    return out;
}

DecoderConfig config_of(const nb::dict& given) {
    DecoderConfig c;
    const auto whole = [&](const char* name) { return nb::cast<int>(given[name]); };
    c.vocab_size = whole("vocab_size");
    c.hidden_size = whole("hidden_size");
    c.heads = whole("num_heads");
    c.kv_heads = whole("num_kv_heads");
    c.head_size = whole("head_dim");
    c.ffn_size = whole("ffn_size");
    c.rotary_dim = whole("rotary_dim");
    c.train_length = whole("train_length");
    c.logn = nb::cast<bool>(given["logn"]);
    c.norm_eps = nb::cast<float>(given["norm_eps"]);
    c.rope_base = nb::cast<double>(given["rope_base"]);
    c.rope_magnitude = nb::cast<float>(given["rope_magnitude"]);
    c.rope_divisors = nb::cast<std::vector<float>>(given["rope_divisors"]);
    return c;
}

Layer layer_of(const nb::dict& given) {
    Layer layer;
    layer.attention_norm = floats(given["input_layernorm"]);
    layer.mlp_norm = floats(given["post_attention_layernorm"]);
    layer.query_norm = floats(given["q_norm"]);
    layer.key_norm = floats(given["k_norm"]);
    layer.qkv = linear_of(nb::cast<nb::dict>(given["qkv"]));
    layer.output = linear_of(nb::cast<nb::dict>(given["output"]));
    layer.gate_up = linear_of(nb::cast<nb::dict>(given["gate_up"]));
    layer.down = linear_of(nb::cast<nb::dict>(given["down"]));
    layer.down.outlier = kOutlierOfProducts;
    layer.window = nb::cast<int>(given["window"]);
    return layer;
}

Weights make_weights(std::shared_ptr<Arena> memory, const nb::dict& config, const nb::list& layers, const MatrixBuilder& embedding, const nb::dict& head,
                     nb::handle final_norm) {
    Weights weights;
    weights.memory = std::move(memory);
    weights.config = config_of(config);
    for (nb::handle layer : layers) weights.layers.push_back(layer_of(nb::cast<nb::dict>(layer)));
    weights.embedding = embedding.matrix();
    weights.head = linear_of(head);
    weights.final_norm = floats(final_norm);
    weights.check();
    return weights;
}

// Asks the interpreter whether a signal (Ctrl-C) has been raised; leaves the exception set.
bool signal_raised() {
    const nb::gil_scoped_acquire locked;
    return PyErr_CheckSignals() != 0;
}

StepRow row_of(const Decoder& decoder, const nb::tuple& given, const Ids& ids) {
    StepRow row;
    row.sequence = nb::cast<Sequence*>(given[0]);
    row.ids = ids.data();
    row.count = static_cast<int>(ids.shape(0));
    row.alpha = nb::cast<double>(given[2]);
    row.wanted = nb::cast<int>(given[3]);
    if (!given[4].is_none()) {
        const auto draw = nb::cast<nb::tuple>(given[4]);
        row.sampler = nb::cast<Sampler*>(draw[0]);
        row.uniforms = nb::cast<std::vector<double>>(draw[1]);
        row.banned = nb::cast<std::vector<int>>(draw[2]);
        if (row.uniforms.empty() || row.uniforms.size() > static_cast<size_t>(row.count) ||
            (row.wanted > 0 && row.uniforms.size() > 1)) {
            throw std::invalid_argument("a draw needs a uniform number, and one more for each guess in its row; logits are not given with guesses");
        }
    }
    if (row.count < 1 || row.wanted < 0 || row.wanted > row.count) {
        throw std::invalid_argument("a row has no tokens, or fewer than logits are wanted of");
    }
    for (int i = 0; i < row.count; ++i) {
        if (row.ids[i] < 0 || row.ids[i] >= decoder.weights().config.vocab_size) {
            throw std::invalid_argument("a token id is outside the vocabulary");
        }
    }
    return row;
}

using Sums = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Adds the final norm's outputs of new tokens of a sequence to `sums` [hidden size].
void pool(Decoder& self, Sequence& sequence, const Ids& ids, double alpha, const Sums& sums) {
    const auto row_given = nb::make_tuple(nb::cast(&sequence, nb::rv_policy::reference), nb::cast(ids), alpha, 0, nb::none());
    std::vector<StepRow> rows{row_of(self, row_given, ids)};
    if (sums.shape(0) != static_cast<size_t>(self.weights().config.hidden_size)) throw std::invalid_argument("the sums are not as many as the hidden size");
    rows[0].pooled = sums.data();
    const Unlocked unlocked;
    self.step(rows, std::function<bool()>());
}

// rows: (sequence, ids int32, alpha, wanted, (sampler, uniforms, banned) or None). Returns logits [all wanted, stride],
// those of the last `wanted` tokens of each row, and the tokens that each row drew.
nb::tuple step(Decoder& self, const nb::list& given, bool interruptible) {
    std::vector<StepRow> rows;
    std::vector<Ids> ids;  // keeps the arrays alive
    size_t wanted = 0;
    for (nb::handle entry : given) {
        const auto row = nb::cast<nb::tuple>(entry);
        ids.push_back(nb::cast<Ids>(row[1]));
        rows.push_back(row_of(self, row, ids.back()));
        wanted += rows.back().wanted;
        for (size_t i = 0; i + 1 < rows.size(); ++i) {
            if (rows[i].sequence == rows.back().sequence) throw std::invalid_argument("a sequence is in two rows of one step");
        }
    }
    const size_t stride = self.logits_stride();
    float* logits = new float[wanted * stride];
    const nb::capsule owner(logits, [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
    size_t at = 0;
    for (StepRow& row : rows) {
        if (row.wanted == 0) continue;
        row.logits = logits + at * stride;
        at += row.wanted;
    }
    try {
        const Unlocked unlocked;
        self.step(rows, interruptible ? signal_raised : std::function<bool()>());
    } catch (const Interrupted&) {
        nb::raise_python_error();
    }
    nb::list drawn;
    for (const StepRow& row : rows) drawn.append(nb::tuple(nb::cast(row.drawn)));
    return nb::make_tuple(nb::ndarray<nb::numpy, float>(logits, {wanted, stride}, owner), drawn);
}

}  // namespace
}  // namespace kiloq

void bind_decoder(nb::module_& module) {
    using namespace kiloq;
    nb::class_<Arena>(module, "Arena", "Reserved memory for weights, in huge pages where there are any.")
        .def(nb::init<size_t>(), "bytes"_a)
        .def_static("mapped", &Arena::mapped, "path"_a, "offset"_a, "bytes"_a)
        .def_prop_ro("used", &Arena::used)
        .def_prop_ro("contents", [](const Arena& self) {
            return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(self.begin(), {self.used()});
        }, nb::rv_policy::reference_internal, "The bytes that matrices have taken.");
    module.attr("PACKED_LAYOUT") = kPackedLayout;
    nb::class_<MatrixBuilder>(module, "Matrix", "A weight matrix [rows, columns] in the layout of the kernels.")
        .def("__init__", [](MatrixBuilder* self, Arena& arena, int rows, int columns, const std::string& format, const std::string& offset, int group) {
            new (self) MatrixBuilder(arena, rows, columns, format_of(format), offset_of(offset), group);
        }, "arena"_a, "rows"_a, "columns"_a, "format"_a, "offset"_a = "none", "group"_a = 32, nb::keep_alive<1, 2>())
        .def_static("bytes", [](int rows, int columns, const std::string& format, const std::string& offset, int group) {
            return MatrixBuilder::bytes(rows, columns, format_of(format), offset_of(offset), group);
        }, "rows"_a, "columns"_a, "format"_a, "offset"_a = "none", "group"_a = 32)
        .def("put_codes", &put_codes, "first"_a, "codes"_a, "scales"_a, "zeros"_a.none(), "minimums"_a.none(), "threads"_a)
        .def("put_blocks", &put_block_rows, "first"_a, "blocks"_a, "kind"_a, "threads"_a)
        .def("put_numbers", &put_numbers, "first"_a, "numbers"_a, "source"_a, "threads"_a)
        .def("row", [](const MatrixBuilder& self, int row) {
            if (row < 0 || row >= self.matrix().rows) throw std::invalid_argument("there is no such row");
            std::vector<float> out(self.matrix().columns);
            unpack_row(self.matrix(), row, out.data());
            return out;
        }, "row"_a, "One row as numbers.");
    nb::class_<Page>(module, "Page", "A stretch of cached tokens, kept for sequences that begin alike.");
    nb::class_<Sequence>(module, "Sequence", "The cached tokens of one sequence.")
        .def_prop_ro("length", &Sequence::length)
        .def("clear", &Sequence::clear, "Forgets all tokens.")
        .def("page", &Sequence::page, "index"_a, "The cached tokens from index * block_tokens on, as many.")
        .def("fork", [](const Sequence& self) { return std::make_unique<Sequence>(self); }, "A copy that shares blocks until one of both writes.");
    nb::class_<Decoder>(module, "Decoder", "The network on the CPU.")
        .def("__init__", [](Decoder* self, std::shared_ptr<Arena> memory, const nb::dict& config, const nb::list& layers, const MatrixBuilder& embedding, const nb::dict& head,
                            nb::object final_norm, const std::string& cache_format, size_t limit, int threads) {
            new (self) Decoder(make_weights(std::move(memory), config, layers, embedding, head, final_norm), cache_format_of(cache_format), limit, threads);
        }, "memory"_a, "config"_a, "layers"_a, "embedding"_a, "head"_a, "final_norm"_a, "cache_format"_a, "cache_limit_bytes"_a, "threads"_a)
        .def("open", [](const Decoder& self, const std::vector<const Page*>& pages) { return self.open(pages); },
             "pages"_a = nb::list(), nb::rv_policy::take_ownership,
             "A new sequence, which begins with the tokens of pages of this decoder; None where a window lacks some.")
        .def("pool", &pool, "sequence"_a, "ids"_a, "alpha"_a, "sums"_a)
        .def("step", &step, "rows"_a, "interruptible"_a)
        .def_prop_ro("cache_blocks", [](Decoder& self) { return std::pair(self.pool().used(), self.pool().total()); }, "(used, allocated)")
        .def_prop_ro_static("block_tokens", [](nb::handle) { return kBlockTokens; })
        .def_prop_ro("cache_limit_bytes", [](Decoder& self) { return self.pool().limit_bytes(); })
        .def_prop_ro("cache_block_bytes", [](Decoder& self) { return self.pool().layout().block_bytes(); });
}
