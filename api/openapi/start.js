// Starts Swagger UI on /docs. A session's cookie is sent by the browser itself; what changes something must repeat the
// CSRF token in a header (api/csrf.py). Nothing is fetched from, or sent to, any other server.
"use strict";

const SAFE_METHODS = ["GET", "HEAD", "OPTIONS"];

function csrfToken() {
  const found = document.cookie.split("; ").find((part) => part.startsWith("inferbase_csrf="));
  return found ? found.slice("inferbase_csrf=".length) : "";
}

window.ui = SwaggerUIBundle({
  url: document.getElementById("page").dataset.document,
  dom_id: "#page",
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
  requestInterceptor: (request) => {
    const token = csrfToken();
    const own = new URL(request.url, window.location.href).origin === window.location.origin;
    if (own && token && !SAFE_METHODS.includes((request.method || "GET").toUpperCase())) {
      request.headers["x-csrf-token"] = token;
    }
    return request;
  },
});
