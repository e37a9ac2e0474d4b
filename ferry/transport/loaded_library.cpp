#include "ferry/transport/loaded_library.h"

#include <dlfcn.h>
#include <signal.h>

#include <array>
#include <optional>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// Of this process, while a library is loaded that takes signals for itself in that moment: psm's
/// take SIGINT, SIGSEGV and others, and then end the program with status 1 and a backtrace.
class KeptSignals {
 public:
  KeptSignals() {
    for (int s = 1; s < kFirstRealTimeSignal; ++s) {
      struct sigaction action {};

      if (sigaction(s, nullptr, &action) == 0) kept_[static_cast<std::size_t>(s)] = action;
    }
  }

  ~KeptSignals() {
    for (int s = 1; s < kFirstRealTimeSignal; ++s)
      if (const auto& action = kept_[static_cast<std::size_t>(s)]) sigaction(s, &*action, nullptr);
  }

  KeptSignals(const KeptSignals&) = delete;
  KeptSignals& operator=(const KeptSignals&) = delete;

 private:
  static constexpr int kFirstRealTimeSignal = 32;

  std::array<std::optional<struct sigaction>, kFirstRealTimeSignal> kept_;
};

void* look_up(void* handle, const LoadedLibrary::Function& wanted) {
  return wanted.version == nullptr ? dlsym(handle, wanted.name)
                                   : dlvsym(handle, wanted.name, wanted.version);
}

}  // namespace

const std::string& LoadedLibrary::why_not() {
  std::call_once(once_, [this] { load(); });
  return why_not_;
}

void LoadedLibrary::load() {
  const KeptSignals kept;
  const int mode = RTLD_LAZY | (options_.global ? RTLD_GLOBAL : RTLD_LOCAL);
  for (const char* file : options_.files) {
    handle_ = dlopen(file, mode);
    if (handle_ == nullptr) {
      const char* why = dlerror();
      if (why_not_.empty() && why != nullptr) why_not_ = why;
    } else if (options_.first.name != nullptr && look_up(handle_, options_.first) == nullptr) {
      why_not_ = fmt::format("{} has no {} of version {}",
                             file,
                             options_.first.name,
                             options_.first.version == nullptr ? "any" : options_.first.version);
      handle_ = nullptr;
    } else {
      why_not_.clear();
      return;
    }
  }
  why_not_ =
      fmt::format("{} is not on this machine ({}); {}", options_.what, why_not_, options_.remedy);
}

bool LoadedLibrary::is_here() const {
  for (const char* file : options_.files) {
    if (void* handle = dlopen(file, RTLD_LAZY | RTLD_NOLOAD); handle != nullptr) {
      dlclose(handle);  // the count alone
      return true;
    }
  }
  return false;
}

void* LoadedLibrary::find(const Function& wanted) {
  if (const std::string& why = why_not(); !why.empty()) fail<ConfigError>("{}", why);
  void* found = look_up(handle_, wanted);
  if (found == nullptr)
    fail<ConfigError>("{} has no {}; {}", options_.what, wanted.name, options_.remedy);
  return found;
}

}  // namespace ferry
