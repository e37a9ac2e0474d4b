#include "ferry/text/bpe.h"

#include <algorithm>

#include "ferry/core/error.h"
#include "ferry/text/utf8.h"

namespace ferry {

namespace {

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

/// For std::push_heap: the lowest rank comes first, then the leftmost.
bool later(const Bpe::Scratch::Candidate& a, const Bpe::Scratch::Candidate& b) {
  return std::pair(a.rank, a.position) > std::pair(b.rank, b.position);
}

}  // namespace

Bpe::Bpe(const std::array<std::int32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids) {
  add_rules(merges);
}

Bpe::Bpe(Characters characters, const std::vector<Merge>& merges)
    : characters_(std::move(characters)) {
  add_rules(merges);
}

void Bpe::add_rules(const std::vector<Merge>& merges) {
  rules_.reserve(merges.size());
  for (const Merge& merge : merges) {
    rules_[key_of(merge.left, merge.right)] = {merge.rank, merge.result};
  }
}

const Bpe::Rule* Bpe::find(std::int32_t left, std::int32_t right) const {
  const auto it = rules_.find(key_of(left, right));
  return it == rules_.end() ? nullptr : &it->second;
}

void Bpe::offer(std::int32_t position, Scratch& scratch) const {
  if (position < 0) return;
  const auto& symbol = scratch.symbols[static_cast<std::size_t>(position)];
  if (symbol.next < 0) return;
  const std::int32_t right = scratch.symbols[static_cast<std::size_t>(symbol.next)].id;
  if (const Rule* rule = find(symbol.id, right)) {
    scratch.heap.push_back({rule->rank, position, symbol.id, right});
    std::push_heap(scratch.heap.begin(), scratch.heap.end(), later);
  }
}

void Bpe::begin_character(std::string_view character, std::vector<Scratch::Symbol>& symbols) const {
  const auto known = characters_->ids.find(char_at(character, 0));
  if (known != characters_->ids.end()) {
    symbols.push_back({.id = known->second});
  } else if (characters_->byte_ids) {
    for (const char c : character) {
      symbols.push_back({.id = (*characters_->byte_ids)[static_cast<unsigned char>(c)]});
    }
  } else if (characters_->unknown >= 0) {
    const bool fused =
        characters_->fuse_unknown && !symbols.empty() && symbols.back().id == characters_->unknown;
    if (!fused) symbols.push_back({.id = characters_->unknown});
  }
}

/// The symbols of a word before any merge, linked in order.
void Bpe::begin(std::string_view word, std::vector<Scratch::Symbol>& symbols) const {
  symbols.clear();
  if (characters_) {
    for (std::size_t i = 0; i < word.size(); i += utf8_length(word[i])) {
      begin_character(word.substr(i, utf8_length(word[i])), symbols);
    }
  } else {
    for (const char c : word) symbols.push_back({.id = byte_ids_[static_cast<unsigned char>(c)]});
  }
  const auto n = static_cast<std::int32_t>(symbols.size());
  for (std::int32_t i = 0; i < n; ++i) {
    auto& symbol = symbols[static_cast<std::size_t>(i)];
    symbol.previous = i - 1;
    symbol.next = i + 1 < n ? i + 1 : -1;
  }
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& out, Scratch& scratch) const {
  if (word.size() > (std::size_t{1} << 30)) fail<ConfigError>("text: a word of over 2^30 bytes");
  auto& symbols = scratch.symbols;
  begin(word, symbols);
  scratch.heap.clear();
  for (std::size_t i = 0; i < symbols.size(); ++i) offer(static_cast<std::int32_t>(i), scratch);

  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), later);
    const Scratch::Candidate best = scratch.heap.back();
    scratch.heap.pop_back();
    auto& left = symbols[static_cast<std::size_t>(best.position)];
    // A merge on either side since the offer makes it stale.
    if (left.id != best.left || left.next < 0) continue;
    auto& right = symbols[static_cast<std::size_t>(left.next)];
    if (right.id != best.right) continue;
    left.id = find(best.left, best.right)->result;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = best.position;
    offer(left.previous, scratch);
    offer(best.position, scratch);
  }
  for (const auto& symbol : symbols) {
    if (symbol.id >= 0) out.push_back(symbol.id);
  }
}

}  // namespace ferry
