// One step of a picture whose layout is known, without the host: draws the next code or takes the token that is forced,
// moves the cursor, and writes what the engine's next pass reads.
//
// The newest tokens of a picture wait for a pass; all before them are in the cache. So lengths need no memory of their
// own: the conditional row holds offset + next - waiting tokens, the unconditional one, which begins with the picture,
// next - waiting.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arithmetic/platform.h"
#include "sampling/block_draw.h"
#include "sampling/draw.h"

namespace mgpt {

// What stays while a picture is drawn.
struct Picture {
  const std::int32_t* forced;  // [size] the only token that may stand at an index, or -1 where a code is drawn
  std::int32_t* tokens;        // [size] the picture so far, from begin-of-image
  std::uint32_t size;
  std::uint32_t offset;  // index of begin-of-image in the conditional row
  std::uint32_t low;     // ids of codes: [low, high)
  std::uint32_t high;
  std::uint32_t top_k;
  float guidance;
  float temperature;
  std::uint64_t seed;
};

// What moves. A step that fails leaves it where it is, with the reason, and later steps do nothing.
struct Cursor {
  std::uint32_t next;     // index of the token that comes next
  std::uint32_t waiting;  // tokens before it that the pass is fed, at least 1
  SampleStatus status;
};

// Inputs of the engine's next pass, for every row. A row gets `width` tokens, of which the last may be padding: copies
// of the last token, which the row's total leaves out.
struct Feed {
  std::int32_t* tokens;     // [rows, width]
  std::int32_t* positions;  // [rows, width]
  std::int32_t* lengths;    // [rows] tokens in the cache before the pass
  std::int32_t* totals;     // [rows] and after it
};

// The pictures that share passes. Picture p has row 2p and, with guidance, row 2p + 1; without it, row p.
struct Pictures {
  const Picture* pictures;
  Cursor* cursors;
  Feed feed;
  const float* logits;     // [rows, width, columns] of the pass
  std::uint32_t first_id;  // of column 0
  std::uint32_t columns;
  std::uint32_t width;   // most tokens of a row in a pass
  std::uint32_t guided;  // 1: two rows a picture, 0: one
};

MGPT_HOST_DEVICE SampleRequest request_of(const Pictures& all, std::uint32_t index, const Cursor& cursor) {
  const Picture& picture = all.pictures[index];
  const std::size_t row = std::size_t{index} * (1 + all.guided);
  const std::size_t row_size = std::size_t{all.width} * all.columns;
  const float* cond =
      all.logits + row * row_size + std::size_t{cursor.waiting - 1} * all.columns + (picture.low - all.first_id);
  return {cond,
          all.guided != 0 ? cond + row_size : nullptr,
          picture.low,
          picture.high - picture.low,
          picture.top_k,
          picture.guidance,
          picture.temperature,
          picture.seed,
          picture.offset + cursor.next};
}

// The picture goes on with `token`, and with what is forced behind it as far as one pass holds it.
MGPT_HOST_DEVICE void advance(const Picture& picture, std::uint32_t width, std::int32_t token, Cursor& cursor) {
  cursor.waiting = 0;
  do {
    picture.tokens[cursor.next++] = token;
    ++cursor.waiting;
    token = cursor.next < picture.size ? picture.forced[cursor.next] : -1;
  } while (token >= 0 && cursor.waiting < width);
}

// Forgets the tokens from index `next`, at least 1, on, and an error with them; the token before them waits again.
// Never goes forwards.
MGPT_HOST_DEVICE void go_back(std::uint32_t next, Cursor& cursor) {
  if (next > cursor.next) next = cursor.next;
  const std::uint32_t cached = cursor.next - cursor.waiting;
  cursor = {next, next > cached ? next - cached : 1, SampleStatus::token};
}

MGPT_HOST_DEVICE void write_feed(const Pictures& all, std::uint32_t index, const Cursor& cursor) {
  const Picture& picture = all.pictures[index];
  const std::uint32_t first = cursor.next - cursor.waiting;
  for (std::uint32_t side = 0; side <= all.guided; ++side) {
    const std::size_t row = std::size_t{index} * (1 + all.guided) + side;
    const std::uint32_t start = side == 0 ? picture.offset + first : first;
    for (std::uint32_t i = 0; i < all.width; ++i) {
      const std::uint32_t last = i < cursor.waiting ? i : cursor.waiting - 1;
      all.feed.tokens[row * all.width + i] = picture.tokens[first + last];
      all.feed.positions[row * all.width + i] = static_cast<std::int32_t>(start + i);
    }
    all.feed.lengths[row] = static_cast<std::int32_t>(start);
    all.feed.totals[row] = static_cast<std::int32_t>(start + cursor.waiting);
  }
}

// A team per picture. A finished picture's step does nothing.
template <class Team>
MGPT_TEAM void step(const Team& team, const Pictures& all, std::uint32_t index, DrawScratch<Team>& scratch) {
  const Picture& picture = all.pictures[index];
  Cursor cursor = all.cursors[index];
  team.sync();  // all have read the cursor before it moves
  if (cursor.status != SampleStatus::token || cursor.next >= picture.size) return;
  std::int32_t token = picture.forced[cursor.next];
  if (token < 0) {
    const SampleResult drawn = draw(team, request_of(all, index, cursor), scratch);
    cursor.status = drawn.status;
    token = static_cast<std::int32_t>(drawn.id);
  }
  if (team.rank() != 0) return;
  if (cursor.status == SampleStatus::token) {
    advance(picture, all.width, token, cursor);
    write_feed(all, index, cursor);
  }
  all.cursors[index] = cursor;
}

}  // namespace mgpt
