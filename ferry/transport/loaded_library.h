// Libraries that some machines have and others do not: looked for when a transport over them is
// asked for. So a program starts without them, and does not pay for them where nobody uses them
// (libfabric's psm providers bring a library along that sleeps 0.2 s while it is loaded).
//
// fabric_calls.cpp and mpi_calls.cpp define the functions that we call, each of which calls the
// loaded one; exchange/gpu/cuda_queue.cpp asks for those of CUDA's driver.
#pragma once

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

/// Threads: any. Nothing is ever unloaded.
class LoadedLibrary {
 public:
  /// A function that it must have, in this version where versions are told apart; else null.
  struct Function {
    const char* name = nullptr;
    const char* version = nullptr;
  };

  struct Options {
    std::string_view what;           ///< "libfabric", for messages
    std::vector<const char*> files;  ///< as dlopen() takes them, the best first
    std::string_view remedy;         ///< "install libfabric1"
    Function first = {};             ///< what tells a library that is too old from others
    bool global = false;             ///< it loads parts of itself that look for its names
  };

  explicit LoadedLibrary(Options options) : options_(std::move(options)) {}

  LoadedLibrary(const LoadedLibrary&) = delete;
  LoadedLibrary& operator=(const LoadedLibrary&) = delete;

  /// Loads it. Empty where that has been done; else why it cannot be, in one line. The signal
  /// handlers of this process stay as they are.
  const std::string& why_not();

  /// Whether this process has it, through whomever. Loads nothing.
  bool is_here() const;

  /// The address of a function or an object. Throws ConfigError where there is no library, or none
  /// of this name.
  void* find(const Function& wanted);

 private:
  void load();

  const Options options_;
  std::once_flag once_;
  std::string why_not_;
  void* handle_ = nullptr;
};

}  // namespace ferry
