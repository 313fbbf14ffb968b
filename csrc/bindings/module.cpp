// The Python face of the native code: checks what comes from Python, releases the GIL, turns results into exceptions.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "arithmetic/float_mode.h"
#include "bindings/released.h"
#include "cpu/float_cache.h"
#include "machine/instruction_sets.h"
#include "machine/machine.h"
#include "sampling/noise.h"
#include "sampling/philox.h"
#include "sampling/sampler.h"

namespace py = pybind11;

void bind_decoder(py::module_& module);  // decoder.cpp

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Words = py::array_t<std::uint32_t, py::array::c_style>;

constexpr std::int64_t kIdEnd = std::int64_t{1} << 31;
constexpr std::int64_t kPositionEnd = std::int64_t{1} << 32;
constexpr std::int64_t kMostThreads = 1024;

[[noreturn]] void fail(const char* error, const std::string& message) {
  py::set_error(py::module_::import("mgpt_edge.runtime.errors").attr(error), message.c_str());
  throw py::error_already_set();
}

[[noreturn]] void refuse(const std::string& message) {
  fail("InvalidRequest", message);
}

// [low, high) as text.
std::string interval(std::int64_t low, std::int64_t high) {
  return "[" + std::to_string(low) + ", " + std::to_string(high) + ")";
}

// The data of a float32, C-contiguous, 1-D array: no copy is ever made behind the caller's back.
const float* logits_of(const py::array& array, const char* name, py::ssize_t* size) {
  if (!py::isinstance<Floats>(array) || array.ndim() != 1) {
    std::string got = py::str(array.dtype());
    got += " of " + std::to_string(array.ndim()) + " dimensions";
    if (py::isinstance<py::array_t<float>>(array)) got += array.ndim() == 1 ? ", not contiguous" : "";
    throw py::type_error(std::string(name) + " must be a C-contiguous float32 array of 1 dimension, got " + got);
  }
  *size = array.size();
  return static_cast<const float*>(array.data());
}

// A finite float32; `name` is for the message.
float checked_float(double value, const char* name) {
  if (!(std::abs(value) <= static_cast<double>(std::numeric_limits<float>::max()))) {
    refuse(std::string(name) + " must be finite in float32, got " + std::to_string(value));
  }
  return static_cast<float>(value);
}

std::int64_t sample(const py::array& cond, const std::optional<py::array>& uncond, std::int64_t first_id,
                    std::int64_t low, std::int64_t high, double guidance, std::int64_t top_k, double temperature,
                    std::uint64_t seed, std::int64_t position) {
  py::ssize_t size = 0;
  const float* c = logits_of(cond, "cond", &size);
  const float* u = nullptr;
  if (uncond) {
    py::ssize_t uncond_size = 0;
    u = logits_of(*uncond, "uncond", &uncond_size);
    if (uncond_size != size) {
      refuse("cond and uncond must have one length, got " + std::to_string(size) + " and " +
             std::to_string(uncond_size));
    }
  }
  if (first_id < 0 || first_id > kIdEnd - size) {
    refuse("first_id must be in [0, 2^31 - length], got " + std::to_string(first_id));
  }
  if (low < first_id || high <= low || high > first_id + size) {
    refuse("the interval must be in the ids " + interval(first_id, first_id + size) +
           " of the logits and not empty, got " + interval(low, high));
  }
  if (top_k < 1) refuse("top_k must be at least 1, got " + std::to_string(top_k));
  if (position < 0 || position >= kPositionEnd) {
    refuse("position must be in [0, 2^32), got " + std::to_string(position));
  }
  const float s = checked_float(guidance, "guidance");
  const float t = checked_float(temperature, "temperature");
  if (t < 0.0f) refuse("temperature must be at least 0, got " + std::to_string(temperature));
  if (u == nullptr && s != 1.0f) {
    refuse("guidance " + std::to_string(guidance) + " needs the unconditional logits; without them it must be 1");
  }

  const mgpt::SampleRequest request{c + (low - first_id),
                                    u == nullptr ? nullptr : u + (low - first_id),
                                    static_cast<std::uint32_t>(low),
                                    static_cast<std::uint32_t>(high - low),
                                    static_cast<std::uint32_t>(top_k < kIdEnd ? top_k : kIdEnd),
                                    s,
                                    t,
                                    seed,
                                    static_cast<std::uint32_t>(position)};
  mgpt::SampleResult result{};
  {
    Released released;
    result = mgpt::sample(request);
  }
  if (result.status == mgpt::SampleStatus::not_a_number) {
    fail("NumericalError", "the logits of ids " + interval(low, high) + " hold NaN");
  }
  if (result.status == mgpt::SampleStatus::nothing_left) {
    fail("NumericalError", "every id of " + interval(low, high) + " is excluded (-inf): nothing is left to sample");
  }
  return result.id;
}

Floats gumbel(std::uint64_t seed, std::uint32_t position, const Words& ids) {
  Floats noise(std::vector<py::ssize_t>(ids.shape(), ids.shape() + ids.ndim()));
  const std::uint32_t* read = ids.data();
  float* write = noise.mutable_data();
  const auto count = static_cast<std::size_t>(ids.size());
  Released released;
  mgpt::gumbel(seed, position, read, count, write);
  return noise;
}

Floats gumbel_of_words(const Words& words) {
  Floats noise(std::vector<py::ssize_t>(words.shape(), words.shape() + words.ndim()));
  const std::uint32_t* read = words.data();
  float* write = noise.mutable_data();
  const py::ssize_t count = words.size();
  Released released;
  const mgpt::FloatMode mode;
  for (py::ssize_t i = 0; i < count; ++i) write[i] = mgpt::gumbel_of_word(read[i]);
  return noise;
}

void use_instruction_set(const std::string& name) {
  if (mgpt::use_instruction_set(name)) return;
  std::string known;
  for (const std::string& other : mgpt::instruction_sets()) known += (known.empty() ? "" : ", ") + other;
  throw py::value_error("this CPU runs " + known + ", got " + name);
}

double read_bandwidth(std::int64_t bytes, std::int64_t threads, double seconds) {
  if (bytes < 1) throw py::value_error("bytes must be at least 1, got " + std::to_string(bytes));
  if (threads < 1 || threads > kMostThreads) {
    throw py::value_error("threads must be in [1, 1024], got " + std::to_string(threads));
  }
  if (!(seconds > 0 && seconds <= 60)) {
    throw py::value_error("seconds must be in (0, 60], got " + std::to_string(seconds));
  }
  // A vector refuses such a length with another error than the one for memory.
  if (bytes > std::numeric_limits<std::int64_t>::max() / 2) throw std::bad_alloc();
  Released released;
  return mgpt::read_bandwidth(static_cast<std::size_t>(bytes), static_cast<std::size_t>(threads), seconds) / 1e9;
}

py::array_t<float> view(const py::object& owner, bool values, std::int64_t layer, std::int64_t sequence) {
  const auto& cache = owner.cast<const mgpt::FloatCache&>();
  auto* data = static_cast<float*>(values ? cache.values(layer, sequence) : cache.keys(layer, sequence));
  const std::vector<py::ssize_t> shape{1, static_cast<py::ssize_t>(cache.shape().kv_heads),
                                       static_cast<py::ssize_t>(cache.capacity(sequence)),
                                       static_cast<py::ssize_t>(cache.shape().head_dim)};
  return py::array_t<float>(shape, data, owner);
}

void bind_float_cache(py::module_& module) {
  using mgpt::FloatCache;
  py::class_<FloatCache>(
      module, "FloatCache",
      "Keys and values of every layer and sequence: float32, allocated once, 64-byte aligned, zero at first.")
      .def(py::init([](std::int64_t layers, std::int64_t kv_heads, std::int64_t head_dim,
                       std::vector<std::int64_t> capacities) {
             return std::make_unique<FloatCache>(
                 mgpt::FloatCacheShape{layers, kv_heads, head_dim, std::move(capacities), std::int64_t{sizeof(float)}});
           }),
           py::arg("layers"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("capacities"))
      .def_property_readonly("layers", [](const FloatCache& cache) { return cache.shape().layers; })
      .def_property_readonly("kv_heads", [](const FloatCache& cache) { return cache.shape().kv_heads; })
      .def_property_readonly("head_dim", [](const FloatCache& cache) { return cache.shape().head_dim; })
      .def_property_readonly("sequences", &FloatCache::sequences)
      .def_property_readonly("nbytes", &FloatCache::bytes)
      .def_property_readonly("lengths", &FloatCache::lengths)
      .def("capacity", &FloatCache::capacity, py::arg("sequence"))
      .def("length", &FloatCache::length, py::arg("sequence"))
      .def("append", &FloatCache::append, py::arg("sequence"), py::arg("tokens"))
      .def("rollback", &FloatCache::rollback, py::arg("sequence"), py::arg("length"))
      .def("copy_prefix", &FloatCache::copy_prefix, py::arg("source"), py::arg("target"), py::arg("length"),
           py::call_guard<Released>())
      .def(
          "k",
          [](const py::object& self, std::int64_t layer, std::int64_t sequence) {
            return view(self, false, layer, sequence);
          },
          py::arg("layer"), py::arg("sequence"),
          "A writable view [1, kv_heads, capacity, head_dim] that keeps the cache alive.")
      .def(
          "v",
          [](const py::object& self, std::int64_t layer, std::int64_t sequence) {
            return view(self, true, layer, sequence);
          },
          py::arg("layer"), py::arg("sequence"),
          "A writable view [1, kv_heads, capacity, head_dim] that keeps the cache alive.");
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native kernels of mgpt-edge; runtime/sampling/specification.py specifies the sampler.";
  module.def("sample", &sample, py::arg("cond"), py::arg("uncond").none(true), py::arg("first_id"), py::arg("low"),
             py::arg("high"), py::arg("guidance"), py::arg("top_k"), py::arg("temperature"), py::arg("seed"),
             py::arg("position"));
  module.def("gumbel", &gumbel, py::arg("seed"), py::arg("position"), py::arg("ids"));
  module.def("gumbel_of_words", &gumbel_of_words, py::arg("words"));
  module.def("end", &Released::end, "Lets no thread come back into an interpreter that ends.");
  module.def("instruction_sets", &mgpt::instruction_sets);
  module.def("use_instruction_set", &use_instruction_set, py::arg("name"));
  module.def("cpu_features", &mgpt::cpu_features);
  module.def("read_bandwidth", &read_bandwidth, py::arg("bytes"), py::arg("threads"), py::arg("seconds"));
  bind_float_cache(module);
  bind_decoder(module);
}
