#include "ferry/engine/batcher.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// What one sequence more on a group costs, in prompt tokens: every step of it takes longer.
constexpr std::int64_t kSequenceWorth = 64;

}  // namespace

Batcher::Batcher(const BatcherOptions& options) : options_(options) {
  FERRY_CHECK(options.groups >= 1 && options.max_sequences >= 1 && options.max_tokens >= 1 &&
                  options.max_running >= 1 && options.state_bytes >= 1,
              "a batcher needs positive sizes");
  check_drafts(options.drafts);
  options_.max_sequences = std::min(options.max_sequences, options.max_tokens);
  if (options.keep_prefixes) options_.layout = options.layout.counted_with_prefixes();
  for (int g = 0; g < options.groups; ++g) loads_.push_back(new_load());
}

Batcher::GroupLoad Batcher::new_load() const {
  return {.memory = GroupMemory(options_.layout, options_.state_bytes, options_.keep_prefixes)};
}

void Batcher::enqueue(Admission admission) { queue_.push(std::move(admission)); }

bool Batcher::cancel(std::uint64_t id) {
  if (queue_.remove(id)) return true;
  for (GroupLoad& load : loads_) {
    const auto found = std::ranges::find(load.sequences, id, &Sequence::id);
    if (found == load.sequences.end()) continue;
    load.memory.end(found->memory);
    load.sequences.erase(found);
    load.dropped.push_back(id);
    return true;
  }
  return false;
}

bool Batcher::idle() const {
  return queue_.empty() && std::all_of(loads_.begin(), loads_.end(), [](const GroupLoad& load) {
           return load.sequences.empty() && load.dropped.empty() && !load.memory.has_news();
         });
}

std::size_t Batcher::running() const {
  std::size_t sum = 0;
  for (const GroupLoad& load : loads_) sum += load.sequences.size();
  return sum;
}

std::size_t Batcher::used_bytes() const {
  std::size_t sum = 0;
  for (const GroupLoad& load : loads_) sum += load.memory.used_bytes();
  return sum;
}

std::size_t Batcher::idle_bytes() const {
  std::size_t sum = 0;
  for (const GroupLoad& load : loads_) sum += load.memory.idle_bytes();
  return sum;
}

bool Batcher::forget_prefixes() {
  if (running() > 0 || waiting() > 0) return false;
  for (GroupLoad& load : loads_)
    if (!load.gone) load.memory.forget_all();
  return true;
}

std::size_t Batcher::most_bytes(std::int64_t positions) const {
  return options_.layout.bytes_most(positions, options_.max_tokens);
}

std::int64_t Batcher::GroupLoad::prompt_left() const {
  std::int64_t tokens = 0;
  for (const Sequence& s : sequences) tokens += s.prompt_left;
  return tokens;
}

bool Batcher::GroupLoad::all_started() const {
  return std::none_of(
      sequences.begin(), sequences.end(), [](const Sequence& s) { return s.evicted; });
}

/// But for memory. Those that were evicted come before anybody new.
bool Batcher::has_place(const GroupLoad& load, const Admission& admission) const {
  return !load.gone && load.sequences.size() < static_cast<std::size_t>(options_.max_sequences) &&
         load.record_left >= encoded_bytes(admission) && load.all_started();
}

Batcher::Place Batcher::place_for(const Admission& admission, std::span<const std::int32_t> ids) {
  const std::size_t bytes = most_bytes(admission.tokens());
  const std::int64_t most = most_reused(admission.request, admission.generated.size());
  const auto work = [](const GroupLoad& load) {
    return std::tuple(load.sequences.size(), load.prompt_left());
  };
  std::vector<Place> places;
  std::size_t least = 0;
  for (GroupLoad& load : loads_) {
    if (!has_place(load, admission)) continue;
    const PrefixIndex::Match match = load.memory.find(admission, ids, most);
    if (!load.memory.fits(bytes, match)) continue;
    places.push_back({&load, match});
    if (work(load) < work(*places[least].load)) least = places.size() - 1;
  }
  if (places.empty()) return {};
  // What a request costs where it is: its tokens, those before it, and its place.
  const auto cost = [&](const Place& place) {
    return -place.match.pages * kPagePositions + place.load->prompt_left() +
           kSequenceWorth * std::ssize(place.load->sequences);
  };
  Place best = places[least];
  for (const Place& place : places)
    if (place.match.pages > places[least].match.pages && cost(place) < cost(best)) best = place;
  return best;
}

/// The tokens before `positions` need not run.
void Batcher::take_reuse(Sequence& s, std::int64_t positions) {
  const std::int64_t found = positions - s.length;
  s.length += found;
  s.prompt_left -= found;
  if (s.restarted || found == 0) return;
  s.reused += static_cast<std::size_t>(found);
  prefix_stats_.reused += static_cast<std::uint64_t>(found);
  planned_reuse_.push_back({.id = s.id(), .tokens = s.reused});
}

void Batcher::admit(std::vector<StepRecord>& records) {
  const std::size_t fixed =
      record_bytes_without_admissions(options_.max_sequences, options_.max_tokens);
  FERRY_CHECK(fixed < options_.record_bytes, "step records of {} bytes", options_.record_bytes);
  for (GroupLoad& load : loads_) load.record_left = options_.record_bytes - fixed;
  for (std::size_t running = this->running();
       !queue_.empty() && running < static_cast<std::size_t>(options_.max_running);
       ++running) {
    Admission& next = queue_.front();
    if (std::ranges::none_of(loads_, [&](const GroupLoad& l) { return has_place(l, next); }))
      return;
    Sequence s{.admission = next,
               .ids = next.ids(),
               .prompt_left = next.tokens(),
               .drafter = NgramDrafter(options_.drafts),
               .draft_length = DraftLength(options_.drafts)};
    const auto [load, match] = place_for(next, s.ids);
    if (!load) return;
    StepRecord& record = records[static_cast<std::size_t>(load - loads_.data())];
    if (!load->memory.begin(s.memory, next, s.ids, match.pages, most_bytes(next.tokens()), record))
      return;
    load->record_left -= encoded_bytes(next);
    if (options_.keep_prefixes) prefix_stats_.asked += next.request.prompt.size();
    take_reuse(s, match.pages * kPagePositions);
    load->sequences.push_back(std::move(s));
    record.admissions.push_back(std::move(next));
    queue_.pop();
  }
}

void Batcher::evict(GroupLoad& load, Sequence& sequence, StepRecord& record) {
  record.evicted.push_back(sequence.id());
  // Past its prompt it knows one token that it has not run.
  sequence.prompt_left = sequence.length + std::max<std::int64_t>(sequence.prompt_left, 1);
  sequence.length = 0;
  load.memory.end(sequence.memory);
  sequence.evicted = true;
  sequence.restarted = true;
}

/// Memory for one more position; false when the sequence had to give up its own, or has to wait for
/// a step.
bool Batcher::grow(GroupLoad& load, std::size_t sequence, StepRecord& record) {
  const std::int64_t length = load.sequences[sequence].length;
  const std::size_t wanted = options_.layout.bytes_held(length, length + 1);
  for (;;) {
    const auto room = load.memory.resize(load.sequences[sequence].memory, wanted, record);
    if (room != GroupMemory::Room::none) return room == GroupMemory::Room::there;
    std::size_t youngest = load.sequences.size() - 1;
    while (load.sequences[youngest].evicted) --youngest;
    evict(load, load.sequences[youngest], record);
    ++evictions_;
    if (youngest == sequence) return false;
  }
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

/// Behind everybody's own token and all who begin, so that no draft takes what they need. Returns
/// how many tokens.
int Batcher::plan_drafts(GroupLoad& load, StepRecord& record) {
  if (!options_.drafts.on()) return 0;
  int room = options_.max_tokens - static_cast<int>(record.runs.size());
  if (load.prompt_left() > 0) room /= 2;
  int planned = 0;
  auto run = record.runs.begin();
  for (Sequence& s : load.sequences) {
    if (s.planned == 0) continue;
    SequenceRun& own = *run++;
    const std::int64_t positions = most_positions(s.admission.request, options_.max_context);
    const auto most =
        static_cast<int>(std::min<std::int64_t>(room - planned, positions - s.length));
    if (options_.drafts.by_layer()) {
      own.draft = s.foreseen;
      own.draft.resize(std::min(own.draft.size(), static_cast<std::size_t>(std::max(most, 0))));
    } else {
      own.draft = s.drafter.draft(s.ids, most);
    }
    const std::int64_t tokens = std::ssize(own.draft);
    const std::size_t wanted = options_.layout.bytes_held(s.length - 1, s.length + tokens);
    if (tokens > 0 && load.memory.resize(s.memory, wanted, record) != GroupMemory::Room::there)
      own.draft.clear();
    s.drafted = static_cast<int>(own.draft.size());
    own.tokens += s.drafted;
    s.planned += s.drafted;
    s.length += s.drafted;
    planned += s.drafted;
  }
  return planned;
}

/// Of sequences that will have given a token when the step is over. Behind all that the step itself
/// needs, and at most as long as what they may still give behind it. Returns the longest.
int Batcher::ask_for_drafts(GroupLoad& load, StepRecord& record) {
  if (!options_.drafts.by_layer()) return 0;
  int longest = 0;
  for (SequenceRun& run : record.runs) {
    Sequence& s = *std::ranges::find(load.sequences, run.id, &Sequence::id);
    if (s.prompt_left > 0) continue;
    const std::int64_t positions = most_positions(s.admission.request, options_.max_context);
    const std::int64_t tokens =
        std::min<std::int64_t>(s.draft_length.worth_making(), positions - s.length - 1);
    if (tokens <= 0) continue;
    // A prompt has the memory for all of it, also where its step is lost.
    const std::size_t wanted =
        std::max(options_.layout.bytes_held(s.length - s.planned, s.length + tokens),
                 s.planned_prompt ? most_bytes(s.length) : 0);
    if (load.memory.resize(s.memory, wanted, record) != GroupMemory::Room::there) continue;
    s.asked = run.drafts = static_cast<std::int32_t>(tokens);
    longest = std::max(longest, s.asked);
  }
  return longest;
}

/// Whether the page behind its path may be another's.
bool Batcher::may_reuse_next(const Sequence& s) {
  return (s.memory.path.pages() + 1) * kPagePositions <=
         most_reused(s.admission.request, s.admission.generated.size());
}

/// In order, so that a large one is not kept waiting by small ones.
void Batcher::restart(GroupLoad& load, StepRecord& record) {
  for (Sequence& s : load.sequences) {
    if (!s.evicted) continue;
    const std::size_t wanted = most_bytes(s.prompt_left);
    const std::int64_t most = most_reused(s.admission.request, s.admission.generated.size());
    const PrefixIndex::Match match = load.memory.find(s.admission, s.ids, most);
    if (!load.memory.fits(wanted, match) ||
        !load.memory.begin(s.memory, s.admission, s.ids, match.pages, wanted, record))
      return;
    s.evicted = false;
    take_reuse(s, match.pages * kPagePositions);
  }
}

/// What others have filled since of the pages that prompts are about to compute.
void Batcher::catch_up(GroupLoad& load, StepRecord& record) {
  for (Sequence& s : load.sequences) {
    if (s.prompt_left == 0 || s.evicted) continue;
    const std::int64_t most = most_reused(s.admission.request, s.admission.generated.size());
    const std::int64_t pages =
        load.memory.catch_up(s.memory, s.admission, s.ids, s.length, most, record);
    if (pages > 0) take_reuse(s, pages * kPagePositions);
  }
}

void Batcher::plan_prompts(GroupLoad& load, StepRecord& record, int room) {
  if (load.memory.keeps()) catch_up(load, record);
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
  /// Returns how many tokens run.
  const auto run = [&](Sequence& s, std::int64_t most) {
    if (most == 0) return most;
    const std::int64_t tokens = load.memory.up_to_snapshot(s.memory, s.ids, s.length, most);
    record.runs.push_back({.id = s.id(), .tokens = static_cast<std::int32_t>(tokens)});
    s.planned = tokens;
    s.planned_prompt = true;
    s.prompt_left -= tokens;
    s.length += tokens;
    planned_prompt_tokens_ += static_cast<int>(tokens);
    return tokens;
  };
  std::set<PrefixIndex::Key> pages;  // that the step computes
  /// Whether it computes the next page itself: its first token, where that is another's too, waits.
  const auto computes = [&](const Sequence& s) {
    if (!load.memory.keeps()) return true;
    const auto key = PrefixIndex::next_key(s.memory.path, s.ids);
    return !key || pages.insert(*key).second || !may_reuse_next(s);
  };
  if (for_first > 0) static_cast<void>(computes(*first));
  for (Sequence* s : prompts) {
    if (s == first || left == 0 || !computes(*s)) continue;
    left -= run(*s, std::min(s->prompt_left, left));
  }
  run(*first, std::min(first->prompt_left, for_first + left));
}

std::vector<StepRecord> Batcher::plan(int prompt_tokens) {
  std::vector<StepRecord> records(loads_.size());
  planned_prompt_tokens_ = planned_decode_tokens_ = most_prompt_tokens_ = 0;
  planned_reuse_.clear();
  for (std::size_t r = 0; r < loads_.size(); ++r) {
    records[r].step = next_step_;
    records[r].dropped = std::exchange(loads_[r].dropped, {});
    for (Sequence& s : loads_[r].sequences) {
      s.planned = 0;
      s.planned_prompt = false;
      s.drafted = s.given = s.asked = 0;
    }
    loads_[r].memory.begin_record(records[r]);
    plan_decodes(loads_[r], records[r]);
    restart(loads_[r], records[r]);
  }
  admit(records);
  for (std::size_t r = 0; r < loads_.size(); ++r) {
    const int decodes = static_cast<int>(records[r].runs.size());
    int room = options_.max_tokens - decodes - plan_drafts(loads_[r], records[r]);
    if (planned_decode_tokens_ > 0) room = std::min(room, prompt_tokens);
    const int before = planned_prompt_tokens_;
    plan_prompts(loads_[r], records[r], room);
    most_prompt_tokens_ = std::max(most_prompt_tokens_, planned_prompt_tokens_ - before);
  }
  int passes = 0;
  for (std::size_t r = 0; r < loads_.size(); ++r)
    passes = std::max(passes, ask_for_drafts(loads_[r], records[r]));
  for (StepRecord& record : records) record.passes = passes;
  ++next_step_;
  return records;
}

std::vector<StepRecord> Batcher::plan_stop() {
  FERRY_CHECK(idle(), "the engine's loop may not end while requests are left");
  std::vector<StepRecord> records = empty_records();
  for (StepRecord& record : records) record.stop = true;
  return records;
}

std::vector<StepRecord> Batcher::plan_next_epoch() {
  std::vector<StepRecord> records = empty_records();
  for (StepRecord& record : records) record.next_epoch = true;
  return records;
}

std::vector<StepRecord> Batcher::empty_records() {
  std::vector<StepRecord> records(loads_.size());
  for (StepRecord& record : records) record.step = next_step_;
  ++next_step_;
  return records;
}

std::size_t Batcher::lose_group(int group) {
  GroupLoad& load = loads_[static_cast<std::size_t>(group)];
  const std::size_t lost = load.sequences.size();
  for (Sequence& s : load.sequences) queue_.push(std::move(s.admission));
  load = new_load();
  load.gone = true;
  return lost;
}

std::size_t Batcher::regroup(std::span<const int> from) {
  std::vector<GroupLoad> next;
  next.reserve(from.size());
  for (const int group : from) {
    next.push_back(group < 0 ? new_load()
                             : std::exchange(loads_[static_cast<std::size_t>(group)], new_load()));
  }
  std::size_t lost = 0;
  for (GroupLoad& load : loads_) {
    lost += load.sequences.size();
    for (Sequence& s : load.sequences) queue_.push(std::move(s.admission));
  }
  loads_ = std::move(next);
  return lost;
}

/// The last `tokens` positions that were planned never were.
void Batcher::take_back(GroupLoad& load, Sequence& s, std::int64_t tokens) const {
  const std::int64_t before = s.length - s.planned;
  const std::size_t of_prompt = s.planned_prompt ? most_bytes(s.length) : 0;
  s.length -= tokens;
  if (s.planned_prompt) s.prompt_left += tokens;
  if (s.drafted > 0 || s.asked > 0)
    load.memory.shrink(s.memory, std::max(options_.layout.bytes_held(before, s.length), of_prompt));
}

void Batcher::take_tokens(GroupLoad& load, int group, const StepResult& result) {
  for (const TokenResult& token : result.tokens) {
    const auto found = std::ranges::find(load.sequences, token.id, &Sequence::id);
    FERRY_CHECK(found != load.sequences.end() && found->prompt_left == 0 && !found->ended &&
                    found->given <= found->drafted,
                "group {} gave a token for request {}, which it was not asked for",
                group,
                token.id);
    found->admission.generated.push_back(token.token);
    found->ids.push_back(token.token);
    found->foreseen.clear();
    ++found->given;
    found->ended = token.last;
  }
  for (const DraftResult& draft : result.drafts) {
    const auto found = std::ranges::find(load.sequences, draft.id, &Sequence::id);
    FERRY_CHECK(found != load.sequences.end() && found->given > 0 && !found->ended &&
                    std::ssize(draft.tokens) <= found->asked,
                "group {} drafted {} tokens for request {}, which it was not asked for",
                group,
                draft.tokens.size(),
                draft.id);
    found->foreseen = draft.tokens;
  }
}

std::size_t Batcher::finish_step(int group, const StepResult& result) {
  GroupLoad& load = loads_[static_cast<std::size_t>(group)];
  auto& sequences = load.sequences;
  if (result.lost) {
    for (Sequence& s : sequences) take_back(load, s, s.planned);
    return 0;
  }
  take_tokens(load, group, result);
  for (Sequence& s : sequences) {
    if (s.given > 0 && s.asked == 0) s.draft_length.rest();
    if (s.drafted > 0) {
      FERRY_CHECK(s.given > 0, "group {} gave no token for request {}", group, s.id());
      const int right = s.given - 1;
      take_back(load, s, s.drafted - right);
      s.drafter.learn(s.drafted, right);
      s.draft_length.learn(s.drafted, right);
      draft_stats_.drafted += static_cast<std::uint64_t>(s.drafted);
      draft_stats_.accepted += static_cast<std::uint64_t>(right);
    } else if (s.asked > 0) {
      take_back(load, s, 0);
    }
    if (s.planned > 0) load.memory.fill(s.memory, s.id(), s.ids, s.length);
    if (s.ended) load.memory.end(s.memory);
  }
  return std::erase_if(sequences, [](const Sequence& s) { return s.ended; });
}

}  // namespace ferry
