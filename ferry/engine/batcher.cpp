#include "ferry/engine/batcher.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

Batcher::Batcher(const BatcherOptions& options) : options_(options) {
  FERRY_CHECK(options.ranks >= 1 && options.max_sequences >= 1 && options.max_tokens >= 1,
              "a batcher needs positive sizes");
  options_.max_sequences = std::min(options.max_sequences, options.max_tokens);
  loads_.resize(static_cast<std::size_t>(options.ranks));
}

void Batcher::enqueue(std::uint64_t id, Request request) {
  queue_.push_back({.id = id, .request = std::move(request)});
}

bool Batcher::idle() const {
  return queue_.empty() && std::all_of(loads_.begin(), loads_.end(), [](const RankLoad& load) {
           return load.sequences.empty();
         });
}

std::size_t Batcher::RankLoad::prompt_left() const {
  std::size_t tokens = 0;
  for (const Sequence& s : sequences) tokens += s.prompt_left;
  return tokens;
}

Batcher::RankLoad* Batcher::rank_for(const Admission& admission) {
  const std::size_t bytes = encoded_bytes(admission);
  RankLoad* best = nullptr;
  const auto work = [](const RankLoad& load) {
    return std::tuple(load.sequences.size(), load.prompt_left());
  };
  for (RankLoad& load : loads_) {
    if (load.sequences.size() >= static_cast<std::size_t>(options_.max_sequences)) continue;
    if (load.record_left < bytes) continue;
    if (!best || work(load) < work(*best)) best = &load;
  }
  return best;
}

void Batcher::admit(std::vector<StepRecord>& records) {
  const std::size_t fixed = record_bytes_without_admissions(options_.max_sequences);
  FERRY_CHECK(fixed < options_.record_bytes, "step records of {} bytes", options_.record_bytes);
  for (RankLoad& load : loads_) load.record_left = options_.record_bytes - fixed;
  while (!queue_.empty()) {
    RankLoad* load = rank_for(queue_.front());
    if (!load) return;
    Admission& next = queue_.front();
    load->record_left -= encoded_bytes(next);
    load->sequences.push_back({.id = next.id, .prompt_left = next.request.prompt.size()});
    records[static_cast<std::size_t>(load - loads_.data())].admissions.push_back(std::move(next));
    queue_.pop_front();
  }
}

void Batcher::plan_rank(RankLoad& load, StepRecord& record) {
  int room = options_.max_tokens;
  for (const Sequence& s : load.sequences) {
    if (s.prompt_left > 0) continue;
    record.runs.push_back({.id = s.id, .tokens = 1});
    --room;
    ++planned_decode_tokens_;
  }
  for (Sequence& s : load.sequences) {
    const int chunk = static_cast<int>(std::min(s.prompt_left, static_cast<std::size_t>(room)));
    if (chunk == 0) continue;
    record.runs.push_back({.id = s.id, .tokens = chunk});
    s.prompt_left -= static_cast<std::size_t>(chunk);
    room -= chunk;
    planned_prompt_tokens_ += chunk;
  }
}

std::vector<StepRecord> Batcher::plan() {
  std::vector<StepRecord> records(loads_.size());
  planned_prompt_tokens_ = planned_decode_tokens_ = 0;
  admit(records);
  for (std::size_t r = 0; r < loads_.size(); ++r) {
    records[r].step = next_step_;
    plan_rank(loads_[r], records[r]);
  }
  ++next_step_;
  return records;
}

std::vector<StepRecord> Batcher::plan_stop() {
  FERRY_CHECK(idle(), "the engine's loop may not end while requests are left");
  std::vector<StepRecord> records(loads_.size());
  for (StepRecord& record : records) {
    record.step = next_step_;
    record.stop = true;
  }
  ++next_step_;
  return records;
}

void Batcher::finish_step(Rank rank, const StepResult& result) {
  auto& sequences = loads_[static_cast<std::size_t>(rank)].sequences;
  for (const TokenResult& token : result.tokens) {
    const auto found = std::find_if(
        sequences.begin(), sequences.end(), [&](const Sequence& s) { return s.id == token.id; });
    FERRY_CHECK(found != sequences.end() && found->prompt_left == 0,
                "rank {} gave a token for request {}, which it was not asked for",
                rank,
                token.id);
    if (token.last) sequences.erase(found);
  }
}

}  // namespace ferry
