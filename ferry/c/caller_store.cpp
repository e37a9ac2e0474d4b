#include "ferry/c/caller_store.h"

#include <cmath>
#include <optional>
#include <string>

#include "ferry/c/arguments.h"
#include "ferry/c/status.h"

struct ferry_store_value {  // NOLINT(readability-identifier-naming): as C has it
  std::optional<ferry::Store::Value> bytes;
};

namespace ferry::c {

FERRY_C_STRUCT(ferry_store, FERRY_STORE);

namespace {

using Clock = std::chrono::steady_clock;

double seconds_until(Deadline deadline) {
  if (deadline == kNoDeadline) return std::numeric_limits<double>::infinity();
  const auto now = Clock::now();
  return deadline <= now ? 0 : std::chrono::duration<double>(deadline - now).count();
}

std::optional<Store::Value> wait(const ferry_store& s, const std::string& key, Deadline deadline) {
  ferry_store_value value;
  bool timed_out = false;
  call_caller("the store's function wait", [&] {
    const ferry_status status = s.wait(s.context, key.c_str(), seconds_until(deadline), &value);
    timed_out = status == FERRY_TIMED_OUT;
    return timed_out ? FERRY_OK : status;
  });
  if (timed_out) return std::nullopt;
  if (!value.bytes) {
    fail<CallbackFailed>(
        "the store's function wait has found {}, but assigned no value (ferry_store_value_assign)",
        key);
  }
  return std::move(value.bytes);
}

}  // namespace

CallbackStore caller_store(const ferry_store* store) {
  const ferry_store s = read_struct(store);
  need(s.set, "ferry_store::set");
  need(s.wait, "ferry_store::wait");
  StoreCallbacks callbacks{
      .set =
          [s](const std::string& key, std::span<const std::byte> value) {
            call_caller("the store's function set",
                        [&] { return s.set(s.context, key.c_str(), value.data(), value.size()); });
          },
      .wait = [s](const std::string& key, Deadline deadline) { return wait(s, key, deadline); }};
  if (s.remove != nullptr) {
    callbacks.remove = [s](const std::string& key) {
      call_caller("the store's function remove", [&] { return s.remove(s.context, key.c_str()); });
    };
  }
  return CallbackStore(std::move(callbacks));
}

}  // namespace ferry::c

ferry_status ferry_store_value_assign(ferry_store_value* value, const void* data, size_t bytes) {
  return ferry::c::guarded([&] {
    const auto from = ferry::c::array(static_cast<const std::byte*>(data), bytes, "data");
    ferry::c::need(value, "value")->bytes.emplace(from.begin(), from.end());
  });
}
