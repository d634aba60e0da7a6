//! Makes any call by its path with an empty request, and reads only how it was judged.

use std::time::Duration;

use durahub_proto::{DESCRIPTORS, OWN_DESCRIPTORS, PEER_DESCRIPTORS};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request};

/// The paths of all methods of all our services, and of those that come from libraries.
pub(crate) fn all_paths() -> Vec<String> {
    let sets =
        [DESCRIPTORS, OWN_DESCRIPTORS, PEER_DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let mut paths = vec!["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned()];
    for file in sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).unwrap().file) {
        let package = match file.package() {
            "" => String::new(),
            package => format!("{package}."),
        };
        for service in &file.service {
            let methods = service.method.iter();
            paths.extend(
                methods.map(|method| format!("/{package}{}/{}", service.name(), method.name())),
            );
        }
    }
    paths.sort();
    paths
}

/// How the server judges a call: `None` if it is not refused for who makes it.
pub(crate) async fn refused(
    channel: &Channel,
    path: &str,
    hub: &str,
    token: Option<&str>,
) -> Option<Code> {
    match call(channel, path, hub, token).await {
        Err(code @ (Code::Unauthenticated | Code::PermissionDenied)) => Some(code),
        _ => None,
    }
}

/// Makes a call; a stream that begins counts as an answer.
pub(crate) async fn call(
    channel: &Channel,
    path: &str,
    hub: &str,
    token: Option<&str>,
) -> Result<(), Code> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
    let mut request = Request::new(tokio_stream::once(()));
    request.metadata_mut().insert("taskhub", hub.parse().unwrap());
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    if path.contains("/Wait") {
        // Nobody starts what it waits for.
        request.set_timeout(Duration::from_secs(10));
    }
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = PathAndQuery::try_from(path).unwrap();
    // In the form that serves every method: the messages of a stream of one look the same on the wire.
    grpc.streaming(request, path, codec).await.map(drop).map_err(|status| status.code())
}
