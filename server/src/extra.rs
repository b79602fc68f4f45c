//! The listener's hook: supervisor paths, streaming subresources and tokens find their handlers here.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;

use crate::api::Registry;
use crate::auth::{Caller, Identity};
use crate::http::{Extra, Handled, RequestInfo, error_response};
use crate::proxy::Proxy;
use crate::supervisor::Supervisor;
use crate::token_request;
use crate::tokens::Tokens;

/// Everything the listener serves beside the plain REST API.
pub struct Handlers {
    /// K3s' own paths.
    pub supervisor: Arc<Supervisor>,
    /// Requests that end at a node.
    pub proxy: Arc<Proxy>,
    /// For TokenRequests.
    pub tokens: Arc<Tokens>,
    /// For TokenRequests.
    pub registry: Arc<Registry>,
}

impl Extra for Handlers {
    fn supervisor(&self, request: Request<Incoming>, caller: Caller) -> Handled {
        self.supervisor.handle(request, caller)
    }

    fn subresource(&self, info: RequestInfo, request: Request<Incoming>, identity: Identity) -> Handled {
        if info.resource != "serviceaccounts" || info.subresource != "token" {
            return self.proxy.handle(info, request, &identity);
        }
        let (registry, tokens) = (self.registry.clone(), self.tokens.clone());
        Handled::Response(Box::pin(async move {
            match token_request::serve(&registry, &tokens, &info, request, &identity).await {
                Ok(response) => response,
                Err(status) => error_response(&status),
            }
        }))
    }
}
