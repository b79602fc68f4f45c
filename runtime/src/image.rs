//! Verbs on images.

use tonic::Request;

use crate::client::{CALL, failed, gone_is_done, unary};
use crate::{Client, Result, cri};

impl Client {
    /// The image behind a name, digest or id; `None` when it is not on this node.
    pub async fn image_status(&self, image: &str) -> Result<Option<cri::Image>> {
        let request = cri::ImageStatusRequest { image: Some(spec(image)), verbose: false };
        let answer = unary("ImageStatus", image, CALL, request, |r| async move { self.images().image_status(r).await }).await?;
        Ok(answer.image)
    }

    /// Pulls an image and returns its reference: the id to create containers with. No deadline: drop the future to
    /// give up. `sandbox_config` lets the runtime account the work to the pod.
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
        sandbox_config: Option<cri::PodSandboxConfig>,
    ) -> Result<String> {
        let request = cri::PullImageRequest { image: Some(spec(image)), auth, sandbox_config };
        self.images()
            .pull_image(Request::new(request))
            .await
            .map(|answer| answer.into_inner().image_ref)
            .map_err(|status| failed("PullImage", image, status))
    }

    /// All images of this node.
    pub async fn list_images(&self) -> Result<Vec<cri::Image>> {
        let request = cri::ListImagesRequest { filter: None };
        let answer = unary("ListImages", "", CALL, request, |r| async move { self.images().list_images(r).await }).await?;
        Ok(answer.images)
    }

    /// Removes an image with all its names. One that is gone is success.
    pub async fn remove_image(&self, image: &str) -> Result<()> {
        let request = cri::RemoveImageRequest { image: Some(spec(image)) };
        gone_is_done(unary("RemoveImage", image, CALL, request, |r| async move { self.images().remove_image(r).await }).await)
    }

    /// Space and inodes the images use.
    pub async fn image_fs_info(&self) -> Result<cri::ImageFsInfoResponse> {
        unary("ImageFsInfo", "", CALL, cri::ImageFsInfoRequest {}, |r| async move { self.images().image_fs_info(r).await }).await
    }
}

fn spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..Default::default() }
}
