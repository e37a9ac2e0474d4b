#include "ferry/checkpoint/hub_cache.h"

#include <gmock/gmock.h>

#include <cstdlib>

#include "ferry/core/error.h"
#include "support/files.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class HubCache : public testing::Test {
 protected:
  HubCache() {
    for (const char* variable : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"}) unsetenv(variable);
    setenv("HF_HOME", home_.path().c_str(), 1);
    fs::create_directories(snapshots() / "abc");
    fs::create_directories(repository() / "refs");
  }

  ~HubCache() override { unsetenv("HF_HOME"); }

  fs::path repository() const { return home_.path() / "hub" / "models--org--a-name"; }

  fs::path snapshots() const { return repository() / "snapshots"; }

  void write_main(std::string_view revision) const {
    test::write_file(repository() / "refs" / "main", revision);
  }

  static std::string refused(std::string_view model) {
    return test::message_of<ModelError>([&] { find_model(model); });
  }

  test::TempDir home_;
};

TEST_F(HubCache, TakesTheSnapshotOfMain) {
  fs::create_directories(snapshots() / "def");
  write_main("abc");
  EXPECT_EQ(find_model("org/a-name"), snapshots() / "abc");
}

TEST_F(HubCache, TakesTheOnlySnapshotWhereMainIsMissing) {
  EXPECT_EQ(find_model("org/a-name"), snapshots() / "abc");
  write_main("../../elsewhere\n");
  EXPECT_EQ(find_model("org/a-name"), snapshots() / "abc") << "a branch is a name, not a path";
}

TEST_F(HubCache, TheCacheMayBeNamedItself) {
  setenv("HF_HUB_CACHE", (home_.path() / "hub").c_str(), 1);
  setenv("HF_HOME", "/nowhere", 1);
  EXPECT_EQ(find_model("org/a-name"), snapshots() / "abc");
  unsetenv("HF_HUB_CACHE");
}

TEST_F(HubCache, SaysWhereItLooked) {
  EXPECT_THAT(refused("org/other"), HasSubstr("models--org--other"));
  EXPECT_THAT(refused("org/other"), HasSubstr("hf download org/other"));
  fs::create_directories(snapshots() / "def");
  EXPECT_THAT(refused("org/a-name"), HasSubstr("found neither"));
}

TEST_F(HubCache, APathIsTakenAsItIs) {
  for (const std::string path : {"./org/a-name", "/org/name", "name", "a/b/c", "../a", "org/"})
    EXPECT_EQ(find_model(path), path);
  EXPECT_EQ(find_model(home_.path().string()), home_.path()) << "it is there";
}

TEST_F(HubCache, ASnapshotIsCalledAsOnTheHub) {
  EXPECT_EQ(model_name(snapshots() / "abc"), "org/a-name");
  EXPECT_EQ(model_name("/models/demo-moe"), "demo-moe");
  EXPECT_EQ(model_name("/models/demo-moe/"), "demo-moe");
  EXPECT_EQ(model_name("/x/snapshots/demo-moe"), "demo-moe");
}

}  // namespace
}  // namespace ferry
