// ferry serve and the clients that people have: OpenAI's and Anthropic's own for Python, what is
// pointed at both, and a browser. scripts/setup.sh clients (all-clients, sglang) installs them;
// without, these tests are skipped.
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "apps/server.h"
#include "ferry/core/error.h"

namespace ferry {
namespace {

using test::kEndless;
using test::long_stream;
using test::LongServe;
using test::output_of;
using test::Server;

/// The first of these that runs with `arguments`; empty: none.
std::string usable(const std::vector<std::string>& programs, const std::string& arguments) {
  for (const std::string& program : programs)
    if (output_of(fmt::format("{} {}", program, arguments)).status == 0) return program;
  return "";
}

/// A Python that has the package; empty: none.
std::string python_with(const std::string& package) {
  return usable({(test::source_dir() / "build/clients/bin/python").string(), "python3"},
                "-c 'import " + package + "'");
}

/// Runs tests/clients/<package>_client.py, which needs that package.
void expect_content(const std::string& package) {
  const std::string python = python_with(package);
  if (python.empty())
    GTEST_SKIP() << "no Python with " << package << " (scripts/setup.sh all-clients, or sglang)";
  Server server({"--model",
                 (test::source_dir() / "assets/demo-moe").string(),
                 "--ep",
                 "2",
                 "--api-key",
                 "k"});
  const std::filesystem::path script = "tests/clients/" + package + "_client.py";
  const auto outcome = output_of(python + " " + (test::source_dir() / script).string() + " " +
                                 server.url("") + " k");
  EXPECT_EQ(outcome.status, 0) << outcome.out;
}

TEST(Clients, OpenAisOwnForPythonFindsWhatItExpects) { expect_content("openai"); }

TEST(Clients, AnthropicsOwnForPythonFindsWhatItExpects) { expect_content("anthropic"); }

TEST(Clients, LiteLlmFindsWhatItExpects) { expect_content("litellm"); }

TEST(Clients, TheEvaluationHarnessAddsUpWhatTheServerSays) { expect_content("lm_eval"); }

TEST(Clients, SglangsFrontEndFindsWhatItExpects) { expect_content("sglang"); }

TEST(Clients, SglangsRouterFindsTwoServersAsOne) {
  const std::string python = python_with("sglang_router");
  if (python.empty()) GTEST_SKIP() << "no Python with sglang_router (scripts/setup.sh clients)";
  const std::string model = (test::source_dir() / "assets/demo-moe").string();
  Server first({"--model", model});
  Server second({"--model", model, "--ep", "2"});
  const std::filesystem::path script = "tests/clients/sglang_router_client.py";
  const auto outcome = output_of(fmt::format("{} {} {} {} {}",
                                             python,
                                             (test::source_dir() / script).string(),
                                             first.url(""),
                                             second.url(""),
                                             second.program().pid()));
  EXPECT_EQ(outcome.status, 0) << outcome.out;
}

/// A page as a browser has it after five of its seconds.
std::string page_in(const std::string& browser, const std::string& url) {
  const test::TempDir profile;
  return output_of(
             "timeout 100 " + browser +
             " --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir=" +
             profile.path().string() + " --virtual-time-budget=5000 --dump-dom '" + url + "'")
      .out;
}

TEST(Clients, ABrowserChats) {
  const std::string browser = usable({"chromium", "google-chrome"}, "--version");
  if (browser.empty()) GTEST_SKIP() << "no Chromium (scripts/setup.sh clients)";
  Server server({"--model", (test::source_dir() / "assets/demo-moe").string(), "--ep", "2"});
  const std::string page = page_in(browser, server.url("/chat?q=Who%20is%20%3Cb%3EMia%3F"));
  for (const char* text : {"<span id=\"model\">demo-moe</span>",
                           "<div class=\"turn user\">Who is &lt;b&gt;Mia?</div>",
                           "<div class=\"turn assistant\"><span>",
                           " tokens, first after "}) {
    EXPECT_NE(page.find(text), std::string::npos) << text << " is not in\n" << page;
  }
  const std::string refused = page_in(browser, server.url("/chat?q=%20") + "&q=x");
  EXPECT_EQ(refused.find("turn user"), std::string::npos) << "an empty message was sent";
}

/// The dashboard's page as a browser has it after five of its seconds.
TEST_F(LongServe, ABrowserShowsWhatTheServerDoes) {
  const std::string browser = usable({"chromium", "google-chrome"}, "--version");
  if (browser.empty()) GTEST_SKIP() << "no Chromium (scripts/setup.sh clients)";
  Server server({"--model", model_, "--ep", "2"});
  // One after the other, four at a time: each ends where the model's context does.
  std::atomic<bool> over = false;
  std::vector<std::thread> clients(4);
  for (std::thread& client : clients) {
    client = std::thread([&] {
      while (!over) server.curl("/v1/completions", long_stream(kEndless), "-N -m 100");
    });
  }
  wait_for_running(server, static_cast<int>(clients.size()));
  const std::string page = page_in(browser, server.url("/"));
  over = true;
  kill(server.program().pid(), SIGKILL);
  for (std::thread& client : clients) client.join();
  for (const char* text : {"<span id=\"model\">model</span>",
                           "<span id=\"state\" class=\"\">up 0 h",
                           "2 ranks, pplx, inproc",
                           " <span class=\"unit\">running</span>",
                           "p50 of the last minute",
                           "since the start ",
                           "Expert load: layers × experts, ",
                           "Rank load: layers × ranks, balancedness ",
                           "<th>tokens/s</th></tr><tr><td>"}) {
    EXPECT_NE(page.find(text), std::string::npos) << text << " is not in\n" << page;
  }
  for (const char* idle : {"id=\"running\">0 <", "<td>none</td>"})
    EXPECT_EQ(page.find(idle), std::string::npos) << idle << " is in\n" << page;
}

}  // namespace
}  // namespace ferry
