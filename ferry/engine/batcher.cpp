#include "ferry/engine/batcher.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

Batcher::Batcher(const BatcherOptions& options) : options_(options) {
  FERRY_CHECK(options.groups >= 1 && options.max_sequences >= 1 && options.max_tokens >= 1 &&
                  options.max_running >= 1 && options.state_bytes >= 1,
              "a batcher needs positive sizes");
  options_.max_sequences = std::min(options.max_sequences, options.max_tokens);
  loads_.resize(static_cast<std::size_t>(options.groups));
}

void Batcher::enqueue(Admission admission) { queue_.push(std::move(admission)); }

bool Batcher::cancel(std::uint64_t id) {
  if (queue_.remove(id)) return true;
  for (GroupLoad& load : loads_) {
    if (std::erase_if(load.sequences, [&](const Sequence& s) { return s.id() == id; }) == 0)
      continue;
    load.dropped.push_back(id);
    return true;
  }
  return false;
}

bool Batcher::idle() const {
  return queue_.empty() && std::all_of(loads_.begin(), loads_.end(), [](const GroupLoad& load) {
           return load.sequences.empty() && load.dropped.empty();
         });
}

std::size_t Batcher::running() const {
  std::size_t sum = 0;
  for (const GroupLoad& load : loads_) sum += load.sequences.size();
  return sum;
}

std::size_t Batcher::used_bytes() const {
  std::size_t sum = 0;
  for (const GroupLoad& load : loads_) sum += load.bytes();
  return sum;
}

std::size_t Batcher::most_bytes(std::int64_t positions) const {
  return options_.layout.bytes_most(positions, options_.max_tokens);
}

std::int64_t Batcher::GroupLoad::prompt_left() const {
  std::int64_t tokens = 0;
  for (const Sequence& s : sequences) tokens += s.prompt_left;
  return tokens;
}

std::size_t Batcher::GroupLoad::bytes() const {
  std::size_t sum = 0;
  for (const Sequence& s : sequences) sum += s.bytes;
  return sum;
}

bool Batcher::GroupLoad::all_started() const {
  return std::none_of(
      sequences.begin(), sequences.end(), [](const Sequence& s) { return s.evicted; });
}

/// Those that were evicted come before anybody new.
bool Batcher::has_room(const GroupLoad& load, const Admission& admission) const {
  return !load.gone && load.sequences.size() < static_cast<std::size_t>(options_.max_sequences) &&
         load.record_left >= encoded_bytes(admission) && load.all_started() &&
         load.bytes() + most_bytes(admission.tokens()) <= options_.state_bytes;
}

Batcher::GroupLoad* Batcher::group_for(const Admission& admission) {
  GroupLoad* best = nullptr;
  const auto work = [](const GroupLoad& load) {
    return std::tuple(load.sequences.size(), load.prompt_left());
  };
  for (GroupLoad& load : loads_)
    if (has_room(load, admission) && (!best || work(load) < work(*best))) best = &load;
  return best;
}

void Batcher::admit(std::vector<StepRecord>& records) {
  const std::size_t fixed = record_bytes_without_admissions(options_.max_sequences);
  FERRY_CHECK(fixed < options_.record_bytes, "step records of {} bytes", options_.record_bytes);
  for (GroupLoad& load : loads_) load.record_left = options_.record_bytes - fixed;
  for (std::size_t running = this->running();
       !queue_.empty() && running < static_cast<std::size_t>(options_.max_running);
       ++running) {
    Admission& next = queue_.front();
    GroupLoad* load = group_for(next);
    if (!load) return;
    load->record_left -= encoded_bytes(next);
    const std::int64_t prompt = next.tokens();
    load->sequences.push_back(
        {.admission = next, .prompt_left = prompt, .bytes = most_bytes(prompt)});
    records[static_cast<std::size_t>(load - loads_.data())].admissions.push_back(std::move(next));
    queue_.pop();
  }
}

void Batcher::evict(Sequence& sequence, StepRecord& record) {
  record.evicted.push_back(sequence.id());
  // Past its prompt it knows one token that it has not run.
  sequence.prompt_left = sequence.length + std::max<std::int64_t>(sequence.prompt_left, 1);
  sequence.length = 0;
  sequence.bytes = 0;
  sequence.evicted = true;
}

/// Memory for one more position; false when the sequence had to give up its own.
bool Batcher::grow(GroupLoad& load, std::size_t sequence, StepRecord& record) {
  const std::int64_t length = load.sequences[sequence].length;
  const std::size_t wanted = options_.layout.bytes_held(length, length + 1);
  while (load.bytes() - load.sequences[sequence].bytes + wanted > options_.state_bytes) {
    std::size_t youngest = load.sequences.size() - 1;
    while (load.sequences[youngest].evicted) --youngest;
    evict(load.sequences[youngest], record);
    ++evictions_;
    if (youngest == sequence) return false;
  }
  load.sequences[sequence].bytes = wanted;
  return true;
}

void Batcher::plan_decodes(GroupLoad& load, StepRecord& record) {
  for (std::size_t i = 0; i < load.sequences.size(); ++i) {
    // One that is evicted on the way has a prompt again and is skipped.
    if (load.sequences[i].prompt_left > 0 || !grow(load, i, record)) continue;
    Sequence& s = load.sequences[i];
    record.runs.push_back({.id = s.id(), .tokens = 1});
    s.planned = 1;
    ++s.length;
    ++planned_decode_tokens_;
  }
}

/// In order, so that a large one is not kept waiting by small ones.
void Batcher::restart(GroupLoad& load) const {
  for (Sequence& s : load.sequences) {
    if (!s.evicted) continue;
    const std::size_t wanted = most_bytes(s.prompt_left);
    if (load.bytes() + wanted > options_.state_bytes) return;
    s.bytes = wanted;
    s.evicted = false;
  }
}

void Batcher::plan_prompts(GroupLoad& load, StepRecord& record, int room) {
  std::vector<Sequence*> prompts;
  for (Sequence& s : load.sequences)
    if (s.prompt_left > 0 && !s.evicted) prompts.push_back(&s);
  if (prompts.empty()) return;

  Sequence* const first = prompts.front();
  std::stable_sort(prompts.begin(), prompts.end(), [](const Sequence* a, const Sequence* b) {
    return a->prompt_left < b->prompt_left;
  });
  std::int64_t left = room;
  std::int64_t for_first = std::min<std::int64_t>(first->prompt_left, (left + 1) / 2);
  left -= for_first;
  const auto run = [&](Sequence& s, std::int64_t tokens) {
    if (tokens == 0) return;
    record.runs.push_back({.id = s.id(), .tokens = static_cast<std::int32_t>(tokens)});
    s.planned = tokens;
    s.planned_prompt = true;
    s.prompt_left -= tokens;
    s.length += tokens;
    planned_prompt_tokens_ += static_cast<int>(tokens);
  };
  for (Sequence* s : prompts) {
    if (s == first) continue;
    const std::int64_t chunk = std::min(s->prompt_left, left);
    run(*s, chunk);
    left -= chunk;
  }
  run(*first, std::min(first->prompt_left, for_first + left));
}

std::vector<StepRecord> Batcher::plan(int prompt_tokens) {
  std::vector<StepRecord> records(loads_.size());
  planned_prompt_tokens_ = planned_decode_tokens_ = most_prompt_tokens_ = 0;
  for (std::size_t r = 0; r < loads_.size(); ++r) {
    records[r].step = next_step_;
    records[r].dropped = std::exchange(loads_[r].dropped, {});
    for (Sequence& s : loads_[r].sequences) {
      s.planned = 0;
      s.planned_prompt = false;
    }
    plan_decodes(loads_[r], records[r]);
    restart(loads_[r]);
  }
  admit(records);
  for (std::size_t r = 0; r < loads_.size(); ++r) {
    int room = options_.max_tokens - static_cast<int>(records[r].runs.size());
    if (planned_decode_tokens_ > 0) room = std::min(room, prompt_tokens);
    const int before = planned_prompt_tokens_;
    plan_prompts(loads_[r], records[r], room);
    most_prompt_tokens_ = std::max(most_prompt_tokens_, planned_prompt_tokens_ - before);
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

std::size_t Batcher::lose_group(int group) {
  GroupLoad& load = loads_[static_cast<std::size_t>(group)];
  const std::size_t lost = load.sequences.size();
  for (Sequence& s : load.sequences) queue_.push(std::move(s.admission));
  load = GroupLoad{};
  load.gone = true;
  return lost;
}

std::size_t Batcher::finish_step(int group, const StepResult& result) {
  auto& sequences = loads_[static_cast<std::size_t>(group)].sequences;
  if (result.lost) {
    for (Sequence& s : sequences) {
      s.length -= s.planned;
      if (s.planned_prompt) s.prompt_left += s.planned;
    }
    return 0;
  }
  std::size_t finished = 0;
  for (const TokenResult& token : result.tokens) {
    const auto found = std::find_if(
        sequences.begin(), sequences.end(), [&](const Sequence& s) { return s.id() == token.id; });
    FERRY_CHECK(found != sequences.end() && found->prompt_left == 0,
                "group {} gave a token for request {}, which it was not asked for",
                group,
                token.id);
    found->admission.generated.push_back(token.token);
    if (!token.last) continue;
    sequences.erase(found);
    ++finished;
  }
  return finished;
}

}  // namespace ferry
