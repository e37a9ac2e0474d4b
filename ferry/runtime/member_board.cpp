#include "ferry/runtime/member_board.h"

#include <cerrno>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/transport/byte_stream.h"
#include "ferry/transport/host_memory.h"
#include "ferry/transport/processes.h"

namespace ferry {

namespace {

std::string prefix_of(const std::string& group) { return fmt::format("ferry/{}/board/", group); }

constexpr const char* kSizeWithNext = "size with next";

}  // namespace

std::optional<int> MemberBoard::size_with_next(Store& store, const std::string& group) {
  const auto value = store.get(prefix_of(group) + kSizeWithNext);
  if (!value) return std::nullopt;
  return ByteReader(*value).number<std::int32_t>();
}

MemberBoard::MemberBoard(Store& store, const std::string& group, std::string name)
    : store_(store), prefix_(prefix_of(group)), name_(std::move(name)) {
  store_.set(key("process", name_), ByteWriter().text(this_host()).number(this_process()).bytes());
}

std::string MemberBoard::key(const char* what, const std::string& name) const {
  return fmt::format("{}{}/{}", prefix_, what, name);
}

std::string MemberBoard::key_of_word(const std::string& name, std::uint64_t tried) const {
  return fmt::format("{}come/{}/{}", prefix_, tried, name);
}

void MemberBoard::come(std::uint64_t tried, const std::vector<std::string>& dead) {
  ByteWriter writer;
  for (const std::string& name : dead) writer.text(name);
  store_.set(key_of_word(name_, tried), writer.bytes());
}

std::optional<std::vector<std::string>> MemberBoard::word_of(const std::string& name,
                                                             std::uint64_t tried) {
  const auto value = store_.get(key_of_word(name, tried));
  if (!value) return std::nullopt;
  std::vector<std::string> dead;
  for (ByteReader reader(*value); !reader.done();) dead.push_back(reader.text());
  return dead;
}

void MemberBoard::forget(const std::vector<std::string>& names, std::uint64_t tried) {
  for (const std::string& name : names) store_.remove(key_of_word(name, tried));
}

void MemberBoard::leave() { store_.set_text(key("left", name_), "yes"); }

void MemberBoard::tell_size_with_next(int ranks) {
  store_.set(prefix_ + kSizeWithNext, ByteWriter().number<std::int32_t>(ranks).bytes());
}

void MemberBoard::dismiss(const std::string& name) {
  store_.set_text(key("dismissed", name), "yes");
}

bool MemberBoard::is_dismissed() { return store_.get(key("dismissed", name_)).has_value(); }

bool MemberBoard::has_left(const std::string& name) {
  if (store_.get(key("left", name))) return true;
  const auto value = store_.get(key("process", name));
  if (!value) return false;
  ByteReader reader(*value);
  if (reader.text() != this_host()) return false;
  const UniqueFd process = open_process(reader.number<ProcessId>());
  return process.valid() ? has_ended(process) : errno == ESRCH;
}

}  // namespace ferry
