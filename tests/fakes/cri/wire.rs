//! The socket's side: CRI's ImageService, containerd's events, and which of them a request is for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use containerd_client::services::v1::{ListTasksRequest, ListTasksResponse, PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use futures_util::stream::BoxStream;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use runtime::cri::image_service_server::{ImageService, ImageServiceServer};
use runtime::cri::runtime_service_server::RuntimeServiceServer;
use runtime::cri::{self, ContainerState};
use runtime::import::normalise;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::{Code, Request, Response, Status};

use super::state::{Inner, Reply, add_image, find_image, ok};

#[tonic::async_trait]
impl ImageService for Inner {
    async fn list_images(&self, _: Request<cri::ListImagesRequest>) -> Reply<cri::ListImagesResponse> {
        let state = self.enter("ListImages", "").await?;
        ok(cri::ListImagesResponse { images: state.images.values().cloned().collect() })
    }

    async fn image_status(&self, request: Request<cri::ImageStatusRequest>) -> Reply<cri::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let state = self.enter("ImageStatus", name.clone()).await?;
        ok(cri::ImageStatusResponse { image: find_image(&state, &name), info: BTreeMap::new() })
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Reply<cri::PullImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let full = normalise(&name);
        let mut state = self.enter("PullImage", name).await?;
        if !state.pullable.contains(&full) {
            return Err(Status::not_found(format!(
                "failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": {full}: not found"
            )));
        }
        let image_ref = add_image(&mut state, &full);
        ok(cri::PullImageResponse { image_ref })
    }

    async fn remove_image(&self, request: Request<cri::RemoveImageRequest>) -> Reply<cri::RemoveImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let mut state = self.enter("RemoveImage", name.clone()).await?;
        if let Some(image) = find_image(&state, &name) {
            state.images.retain(|_, other| other.id != image.id);
        }
        ok(cri::RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _: Request<cri::ImageFsInfoRequest>) -> Reply<cri::ImageFsInfoResponse> {
        let _state = self.enter("ImageFsInfo", "").await?;
        ok(cri::ImageFsInfoResponse::default())
    }
}

/// One HTTP/2 connection, with the services told apart by path.
pub(super) async fn connection(stream: tokio::net::UnixStream, inner: Arc<Inner>) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let inner = inner.clone();
        async move { Ok::<_, Infallible>(route(inner, request).await) }
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn route(inner: Arc<Inner>, request: http::Request<Incoming>) -> http::Response<tonic::body::Body> {
    let path = request.uri().path().to_owned();
    let answer = if path.starts_with("/runtime.v1.RuntimeService/") {
        RuntimeServiceServer::from_arc(inner).call(request).await
    } else if path.starts_with("/runtime.v1.ImageService/") {
        ImageServiceServer::from_arc(inner).call(request).await
    } else if path == "/containerd.services.events.v1.Events/Subscribe" {
        let codec = tonic_prost::ProstCodec::default();
        Ok(tonic::server::Grpc::new(codec).server_streaming(Subscribe(inner), request).await)
    } else if path == "/containerd.services.events.v1.Events/Publish" {
        let codec = tonic_prost::ProstCodec::default();
        Ok(tonic::server::Grpc::new(codec).unary(Publish(inner), request).await)
    } else if path == "/containerd.services.tasks.v1.Tasks/List" {
        let codec = tonic_prost::ProstCodec::default();
        Ok(tonic::server::Grpc::new(codec).unary(ListTasks(inner), request).await)
    } else {
        Ok(Status::new(Code::Unimplemented, format!("unknown method {path}")).into_http())
    };
    answer.unwrap_or_else(|never| match never {})
}

struct Subscribe(Arc<Inner>);

impl tonic::server::ServerStreamingService<SubscribeRequest> for Subscribe {
    type Response = Envelope;
    type ResponseStream = BoxStream<'static, Result<Envelope, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<SubscribeRequest>) -> Self::Future {
        // Filters are exact topics in this project; a topic no filter names is not sent.
        let filters = request.into_inner().filters;
        let events = self.0.events.subscribe();
        let stream = futures_util::stream::unfold((events, filters), |(mut events, filters)| async {
            loop {
                let envelope = events.recv().await.ok()?;
                let wanted = format!("topic==\"{}\"", envelope.topic);
                if filters.iter().any(|filter| filter.contains(&wanted)) {
                    return Some((Ok(envelope), (events, filters)));
                }
            }
        });
        Box::pin(async { Ok(Response::new(Box::pin(stream) as BoxStream<'static, _>)) })
    }
}

struct Publish(Arc<Inner>);

impl tonic::server::UnaryService<PublishRequest> for Publish {
    type Response = ();
    type Future = BoxFuture<Response<()>, Status>;

    fn call(&mut self, request: Request<PublishRequest>) -> Self::Future {
        let request = request.into_inner();
        let _ =
            self.0.events.send(Envelope { timestamp: None, namespace: "k8s.io".to_owned(), topic: request.topic, event: request.event });
        Box::pin(async { Ok(Response::new(())) })
    }
}

/// Each ready sandbox and running container is a task, but for those whose end CRI has not noted.
struct ListTasks(Arc<Inner>);

impl tonic::server::UnaryService<ListTasksRequest> for ListTasks {
    type Response = ListTasksResponse;
    type Future = BoxFuture<Response<ListTasksResponse>, Status>;

    fn call(&mut self, _: Request<ListTasksRequest>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let state = inner.enter("ListTasks", "").await?;
            let ready = state.sandboxes.iter().filter(|(_, sandbox)| sandbox.ready).map(|(id, _)| id);
            let running = state.containers.iter().filter(|(_, it)| it.status.state() == ContainerState::ContainerRunning).map(|(id, _)| id);
            let process = |id: &String| {
                let status = if state.unnoted.contains(id) { TaskStatus::Stopped } else { TaskStatus::Running };
                Process { id: id.clone(), container_id: id.clone(), status: status as i32, ..Default::default() }
            };
            ok(ListTasksResponse { tasks: ready.chain(running).map(process).collect() })
        })
    }
}
