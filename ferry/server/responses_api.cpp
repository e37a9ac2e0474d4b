#include "ferry/server/responses_api.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/server/call_answer.h"
#include "ferry/server/responses_call.h"
#include "ferry/server/responses_form.h"

namespace ferry {

void add_responses_route(RouteTable& routes,
                         EngineFront& front,
                         const ServedModel& model,
                         CallRegistry& calls) {
  routes.post("/v1/responses", [&](const HttpRequest& request) {
    const nlohmann::ordered_json body = parse_object(request.body);
    OpenAiCall call = read_chat(chat_of_responses(body), request, model);
    call.id = new_id("resp_");
    const auto form = std::make_shared<ResponseForm>(model, body, std::move(call));
    return answer_call(front, model, calls, form->call(), form_of(form));
  });
}

}  // namespace ferry
