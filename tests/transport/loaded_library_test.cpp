// Libraries that may be missing, too old, or take signals while they are loaded.
#include "ferry/transport/loaded_library.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "ferry/core/error.h"

namespace ferry {

namespace {

void own_handler(int) {}

}  // namespace

TEST(LoadedLibrary, AMissingOneIsNamedWithItsRemedy) {
  LoadedLibrary library({.what = "libnowhere",
                         .files = {"libnowhere.so.7", "libnowhere.so.6"},
                         .remedy = "install it"});
  EXPECT_FALSE(library.is_here());
  const std::string why = library.why_not();
  EXPECT_NE(why.find("libnowhere is not on this machine (libnowhere.so.7"), std::string::npos)
      << why;
  EXPECT_NE(why.find("; install it"), std::string::npos) << why;
  EXPECT_EQ(why.find('\n'), std::string::npos);
  EXPECT_EQ(library.why_not(), why);
  EXPECT_THROW(library.find({"anything"}), ConfigError);
}

TEST(LoadedLibrary, ATooOldOneIsNotTaken) {
  LoadedLibrary library({.what = "libc",
                         .files = {"libc.so.6"},
                         .remedy = "install a newer one",
                         .first = {"malloc", "GLIBC_99.9"}});
  EXPECT_NE(library.why_not().find("libc.so.6 has no malloc of version GLIBC_99.9"),
            std::string::npos)
      << library.why_not();
}

TEST(LoadedLibrary, TheFirstThatIsThereIsTaken) {
  LoadedLibrary library({.what = "libc", .files = {"libnowhere.so.7", "libc.so.6"}, .remedy = "-"});
  EXPECT_TRUE(library.is_here());
  EXPECT_EQ(library.why_not(), "");
  // Not RTLD_DEFAULT's, which is a sanitizer's own where there is one.
  void* const libc = dlopen("libc.so.6", RTLD_LAZY);
  ASSERT_NE(libc, nullptr);
  EXPECT_EQ(library.find({"strlen"}), dlsym(libc, "strlen"));
  dlclose(libc);
  EXPECT_THROW(library.find({"no_such_function"}), ConfigError);
}

/// FERRY_TAKES_SIGNALS takes SIGINT and SIGUSR1 while it is loaded.
TEST(LoadedLibrary, SignalHandlersStay) {
  struct sigaction own {};

  own.sa_handler = own_handler;
  sigaction(SIGUSR1, &own, nullptr);

  struct sigaction before {};

  sigaction(SIGINT, nullptr, &before);  // ignored where a shell started this in the background
  LoadedLibrary library({.what = "takes_signals", .files = {FERRY_TAKES_SIGNALS}, .remedy = "-"});
  EXPECT_FALSE(library.is_here());
  ASSERT_EQ(library.why_not(), "");
  EXPECT_TRUE(library.is_here());
  EXPECT_EQ(*static_cast<int*>(library.find({"signals_taken"})), 2);

  struct sigaction now {};

  sigaction(SIGUSR1, nullptr, &now);
  EXPECT_EQ(now.sa_handler, own_handler);
  sigaction(SIGINT, nullptr, &now);
  EXPECT_EQ(now.sa_handler, before.sa_handler);
}

}  // namespace ferry
