// The Python face of the native decoder: arrays become pointers, and stay alive as long as what reads them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings/released.h"
#include "cpu/decoder.h"

namespace py = pybind11;

namespace {

using mgpt::cpu::Cache;
using mgpt::cpu::Decoder;
using mgpt::cpu::Dimensions;
using mgpt::cpu::Embedding;
using mgpt::cpu::Layer;
using mgpt::cpu::Segment;
using mgpt::cpu::Weights;

// Looks tensors up by name, and checks what it gives out against the shape that the code will read.
class Tensors {
 public:
  explicit Tensors(const py::dict& arrays) : arrays_(arrays) {}

  template <class T>
  const T* get(const std::string& name, std::int64_t count) const {
    if (!arrays_.contains(name.c_str())) throw py::value_error("there is no tensor " + name);
    const py::object array = arrays_[name.c_str()];
    if (!py::isinstance<py::array_t<T, py::array::c_style>>(array)) {
      throw py::type_error("tensor " + name + " has another type, or is not contiguous");
    }
    const auto typed = py::reinterpret_borrow<py::array>(array);
    if (typed.size() != count) {
      throw py::value_error("tensor " + name + " has " + std::to_string(typed.size()) + " elements, expected " +
                            std::to_string(count));
    }
    return static_cast<const T*>(typed.data());
  }

  template <class T>
  bool is(const std::string& name) const {
    return arrays_.contains(name.c_str()) && py::isinstance<py::array_t<T, py::array::c_style>>(arrays_[name.c_str()]);
  }

  // Of 16 or of 8 bits, which its type says.
  Embedding embedding(std::int64_t rows, std::int64_t hidden) const {
    if (!is<std::int8_t>("embedding")) {
      return {get<std::uint16_t>("embedding", rows * hidden), nullptr, nullptr};
    }
    return {nullptr, get<std::int8_t>("embedding", rows * hidden), get<float>("embedding.scale", rows)};
  }

  // Of 8 or of 4 bits, which the type of their scales says.
  Weights weights(const std::string& name, std::int64_t out, std::int64_t in) const {
    const std::int64_t padded = (out + 15) / 16 * 16;
    const std::string scale = name + ".scale";
    if (!is<std::uint16_t>(scale)) {
      return {get<std::uint8_t>(name, padded * in), get<float>(scale, padded), nullptr, padded, in};
    }
    if (in % mgpt::cpu::kGroup != 0) throw py::value_error("int4 weights take inputs in groups of 32: " + name);
    const auto* scales = get<std::uint16_t>(scale, padded * in / mgpt::cpu::kGroup);
    return {get<std::uint8_t>(name, padded * in / 2), nullptr, scales, padded, in};
  }

 private:
  const py::dict& arrays_;
};

Layer layer_of(const Tensors& tensors, const Dimensions& d, std::int64_t index) {
  const std::string at = "layers." + std::to_string(index) + ".";
  const std::int64_t mixed = d.heads * d.head_dim;
  return {.qkv = tensors.weights(at + "qkv", mixed + 2 * d.kv_heads * d.head_dim, d.hidden),
          .out = tensors.weights(at + "out", d.hidden, mixed),
          .gate_up = tensors.weights(at + "gate_up", 2 * d.intermediate, d.hidden),
          .down = tensors.weights(at + "down", d.hidden, d.intermediate),
          .attention_norm = tensors.get<float>(at + "attention_norm", d.hidden),
          .mlp_norm = tensors.get<float>(at + "mlp_norm", d.hidden),
          .query_weight = tensors.get<float>(at + "query_norm", mixed),
          .query_bias = tensors.get<float>(at + "query_norm.bias", mixed),
          .key_weight = tensors.get<float>(at + "key_norm", d.kv_heads * d.head_dim),
          .key_bias = tensors.get<float>(at + "key_norm.bias", d.kv_heads * d.head_dim)};
}

void check(const Dimensions& d) {
  const bool positive = d.layers > 0 && d.hidden > 0 && d.heads > 0 && d.kv_heads > 0 && d.head_dim > 0 &&
                        d.intermediate > 0 && d.vocabulary > 0;
  if (!positive || d.heads % d.kv_heads != 0 || d.hidden % 16 != 0 || d.head_dim % 16 != 0 ||
      d.head_dim > mgpt::cpu::kMostHeadDim || d.intermediate % 16 != 0) {
    throw py::value_error("the native decoder takes whole groups of heads, and sizes that are multiples of 16");
  }
}

// A decoder, the arrays it reads, and the lock that keeps its passes whole.
struct Loaded {
  py::dict arrays;
  std::pair<py::object, py::object> tables;
  std::unique_ptr<Decoder> decoder;
  std::vector<Segment> segments;
  std::mutex pass;
  pid_t process = getpid();

  // A forked child may find the lock held by a thread that it does not have. Called with Python's lock held.
  void settle() {
    if (process == getpid()) return;
    new (&pass) std::mutex;
    process = getpid();
  }
};

std::unique_ptr<Loaded> load(const py::dict& sizes, double norm_eps, bool norm_after, py::dict tensors, int threads,
                             const std::string& set) {
  const auto size = [&](const char* name) { return sizes[name].cast<std::int64_t>(); };
  const Dimensions d{.layers = size("layers"),
                     .hidden = size("hidden_size"),
                     .heads = size("heads"),
                     .kv_heads = size("kv_heads"),
                     .head_dim = size("head_dim"),
                     .intermediate = size("intermediate_size"),
                     .vocabulary = size("vocabulary"),
                     .norm_eps = static_cast<float>(norm_eps),
                     .norm_after = norm_after};
  check(d);
  if (threads < 1 || threads > 1024) throw py::value_error("threads must be 1 to 1024");
  const mgpt::cpu::Kernels* kernels = mgpt::cpu::kernels_of(set);
  if (kernels == nullptr) throw py::value_error("this machine has no kernels " + set);
  const Tensors named(tensors);
  mgpt::cpu::Model model{.dimensions = d,
                         .embedding = named.embedding(d.vocabulary, d.hidden),
                         .layers = {},
                         .norm = named.get<float>("norm", d.hidden),
                         .head = named.weights("head", d.vocabulary, d.hidden),
                         .rotation = {},
                         .positions = 0};
  for (std::int64_t index = 0; index < d.layers; ++index) model.layers.push_back(layer_of(named, d, index));
  auto loaded = std::make_unique<Loaded>();
  loaded->arrays = std::move(tensors);
  loaded->decoder = std::make_unique<Decoder>(std::move(model), threads, *kernels);
  return loaded;
}

// Replaces the rotary tables by longer ones, [positions, head_dim / 2] each.
void rotate(Loaded& loaded, py::array_t<float, py::array::c_style> cosines,
            py::array_t<float, py::array::c_style> sines) {
  const std::int64_t half = loaded.decoder->model().dimensions.head_dim / 2;
  if (cosines.size() != sines.size() || cosines.size() % half != 0) {
    throw py::value_error("rotary tables must be [positions, " + std::to_string(half) + "], both alike");
  }
  loaded.settle();
  const mgpt::cpu::Rotation rotation{cosines.data(), sines.data()};
  const std::int64_t positions = cosines.size() / half;
  std::unique_lock lock(loaded.pass, std::defer_lock);
  {
    const Released released;
    lock.lock();
  }
  loaded.decoder->rotate(rotation, positions);
  loaded.tables = {std::move(cosines), std::move(sines)};
}

// `segments` [n, 3] holds sequence, number of new tokens and number of logits of each; `tokens` are theirs, one
// segment's after another's; `out` gets the logits in the same order, [sum of the numbers of logits, high - low].
void forward(Loaded& loaded, Cache& cache, const py::array_t<std::int64_t, py::array::c_style>& segments,
             const py::array_t<std::int64_t, py::array::c_style>& tokens, std::int64_t low, std::int64_t high,
             py::array_t<float, py::array::c_style>& out) {
  if (segments.ndim() != 2 || segments.shape(1) != 3) throw py::value_error("segments must be int64 [n, 3]");
  const auto given = segments.unchecked<2>();
  std::int64_t fed = 0, wanted = 0;
  for (py::ssize_t i = 0; i < given.shape(0); ++i) {
    const std::int64_t sequence = given(i, 0), count = given(i, 1), last = given(i, 2);
    if (sequence < 0 || sequence >= cache.sequences())
      throw py::index_error("the cache has no sequence " + std::to_string(sequence));
    if (last < 0 || count < last) {
      throw py::value_error("the logits of " + std::to_string(last) + " tokens were asked for, a segment has " +
                            std::to_string(count) + " new ones");
    }
    fed += count;
    wanted += last;
  }
  if (tokens.size() != fed) throw py::value_error("the segments have " + std::to_string(fed) + " tokens in all");
  if (out.ndim() != 2 || out.shape(0) != wanted || out.shape(1) != high - low) {
    throw py::value_error("out must be float32 [" + std::to_string(wanted) + ", " + std::to_string(high - low) + "]");
  }
  loaded.settle();
  const std::int64_t* ids = tokens.data();
  float* logits = out.mutable_data();
  const Released released;
  const std::lock_guard lock(loaded.pass);
  loaded.segments.clear();
  for (py::ssize_t i = 0; i < given.shape(0); ++i) {
    const auto count = static_cast<std::size_t>(given(i, 1));
    loaded.segments.push_back({given(i, 0), std::span(ids, count), given(i, 2)});
    ids += count;
  }
  loaded.decoder->forward(cache, loaded.segments, low, high, logits);
}

}  // namespace

void bind_decoder(py::module_& module) {
  py::class_<Cache>(module, "Int8Cache", "Keys and values of several sequences in int8, a scale a head and token.")
      .def_property_readonly("sequences", &Cache::sequences)
      .def_property_readonly("nbytes", &Cache::bytes)
      .def("length", &Cache::length, py::arg("sequence"))
      .def("capacity", &Cache::capacity, py::arg("sequence"))
      .def("rollback", &Cache::rollback, py::arg("sequence"), py::arg("length"))
      .def("copy_prefix", &Cache::copy_prefix, py::arg("source"), py::arg("target"), py::arg("length"));
  py::class_<Loaded>(module, "CpuDecoder", "The decoder with int8 or int4 weights and an int8 cache, on the CPU.")
      .def(py::init(&load), py::arg("sizes"), py::arg("norm_eps"), py::arg("norm_after"), py::arg("tensors"),
           py::arg("threads"), py::arg("kernels") = "")
      .def_property_readonly("threads", [](const Loaded& self) { return self.decoder->threads(); })
      .def_property_readonly("positions", [](const Loaded& self) { return self.decoder->model().positions; })
      .def("rotate", &rotate, py::arg("cosines").noconvert(), py::arg("sines").noconvert())
      .def_property_readonly("kernels", [](const Loaded& self) { return self.decoder->kernels().name; })
      .def(
          "cache",
          [](const Loaded& self, std::vector<std::int64_t> capacities) {
            const mgpt::cpu::Dimensions& d = self.decoder->model().dimensions;
            return std::make_unique<Cache>(d.layers, d.kv_heads, d.head_dim, std::move(capacities));
          },
          py::arg("capacities"), "Room for sequences of so many tokens.")
      .def("forward", &forward, py::arg("cache"), py::arg("segments").noconvert(), py::arg("tokens").noconvert(),
           py::arg("low"), py::arg("high"), py::arg("out").noconvert());
}
