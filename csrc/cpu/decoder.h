// The family's decoder with int8 or int4 weights and an int8 cache, as one call a pass.
//
// A token's result depends on the tokens before it alone: not on what shares the pass, on the number of threads, nor on
// the instruction set. Integer products are exact, floating point is done in one fixed order (lanes.h).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpu/cache.h"
#include "cpu/kernels.h"
#include "cpu/team.h"

namespace mgpt::cpu {

struct Dimensions {
  std::int64_t layers;
  std::int64_t hidden;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  std::int64_t intermediate;
  std::int64_t vocabulary;
  float norm_eps;
  bool norm_after;  // the norm stands behind attention and feed-forward, not before (34B)
};

struct Layer {
  Weights qkv;  // for each K/V head: its queries, its key, its value
  Weights out;
  Weights gate_up;  // blocks of 16 gates and 16 ups in turn
  Weights down;
  const float* attention_norm;  // [hidden]
  const float* mlp_norm;
  const float* query_weight;  // [heads, head_dim]
  const float* query_bias;
  const float* key_weight;  // [kv_heads, head_dim]
  const float* key_bias;
};

// [vocabulary, hidden]: bfloat16, or bytes with a scale a row; the other is null.
struct Embedding {
  const std::uint16_t* bfloat16;
  const std::int8_t* bytes;
  const float* scales;

  void row(std::int64_t id, std::int64_t hidden, float* out) const;
};

struct Model {
  Dimensions dimensions;
  Embedding embedding;
  std::vector<Layer> layers;
  const float* norm;
  Weights head;  // [vocabulary, hidden]
  Rotation rotation;
  std::int64_t positions;  // that `rotation` reaches
};

// New tokens of one sequence of the cache, and of how many of the last ones logits are wanted.
struct Segment {
  std::int64_t sequence;
  std::span<const std::int64_t> tokens;
  std::int64_t last;
};

// Runs passes over a model with one team of threads; one pass at a time.
class Decoder {
 public:
  Decoder(Model model, int threads, const Kernels& kernels);
  ~Decoder();

  const Model& model() const { return model_; }
  const Kernels& kernels() const { return kernels_; }
  int threads() const { return team_.size(); }

  // Tables for the first `positions` positions; a pass that reaches further is refused. Not while a pass runs.
  void rotate(const Rotation& rotation, std::int64_t positions) {
    model_.rotation = rotation;
    model_.positions = positions;
  }

  // Feeds the segments' tokens and appends them to the cache; `out` gets the logits over the ids [low, high) of each
  // segment's last tokens, one segment's after another's. Buffers grow only for a pass longer than all before it.
  // Throws std::out_of_range for a token, sequence, length or id that does not fit, std::invalid_argument for a
  // sequence that comes twice; the cache is then as it was.
  void forward(Cache& cache, std::span<const Segment> segments, std::int64_t low, std::int64_t high, float* out);

 private:
  struct Token {
    std::int64_t sequence, position, id;
  };
  struct Workspace;  // of one member

  void check(const Cache& cache, std::span<const Segment> segments, std::int64_t low, std::int64_t high) const;
  std::int64_t feed(Cache& cache, std::span<const Segment> segments);
  void run(Cache& cache, std::span<const Token> tokens, float* hidden);
  void logits(const float* hidden, std::int64_t rows, std::int64_t low, std::int64_t high, float* out);
  void attention(int member, const Layer& layer, std::int64_t index, const Cache& cache, std::span<const Token> tokens);
  void feed_forward(int member, const Layer& layer, std::int64_t rows);
  Activations quantised(Workspace& work, const Weights& weights, const float* x, std::int64_t rows) const;
  Activations branch_input(Workspace& work, const Weights& weights, const float* norm, std::int64_t rows) const;
  void residual(Workspace& work, const float* norm, std::int64_t rows) const;

  Model model_;
  const Kernels& kernels_;
  Team team_;
  std::vector<std::unique_ptr<Workspace>> work_;
  std::vector<Token> tokens_;  // of the pass
  std::vector<float> hidden_;  // [tokens, hidden]: normalised, of all tokens, then of those that are wanted
  std::vector<float> mixed_;   // [tokens, heads * head_dim]: what attention leaves
  std::vector<float> gated_;   // [tokens, intermediate]
  std::vector<float> delta_;   // [tokens, hidden]: what a branch adds
};

}  // namespace mgpt::cpu
