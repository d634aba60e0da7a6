//! Pieces that arrive on one stream of frames, put together again and capped in bytes.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use durahub_proto::peer::frame::Body;
use durahub_proto::peer::{Frame, Hello, Method};

use super::{FRAME_BYTES, MESSAGE_BYTES};

/// Bytes of unfinished messages that one stream may hold.
const UNFINISHED_BYTES: usize = 2 * MESSAGE_BYTES;

/// A whole message.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    Hello(Hello),
    Request {
        call: u64,
        method: Method,
        group: u32,
        payload: Bytes,
    },
    /// The answer, or the reason of a refusal.
    Response {
        call: u64,
        result: Result<Bytes, String>,
    },
    Cancel {
        call: u64,
    },
    /// The next item of a feed.
    Item {
        call: u64,
        payload: Bytes,
    },
}

/// What a message is, by its first frame.
enum Begun {
    Request { method: Method, group: u32 },
    Response,
    Item,
}

struct Partial {
    begin: Begun,
    length: usize,
    data: BytesMut,
}

/// Messages of one stream that are not whole yet.
#[derive(Default)]
pub(super) struct Inbox {
    partial: HashMap<u64, Partial>,
    bytes: usize,
}

impl Inbox {
    /// Takes the next frame. An error is a sentence about a peer that breaks the protocol: the stream ends.
    pub(super) fn accept(&mut self, frame: Frame) -> Result<Option<Message>, String> {
        let call = frame.call;
        match frame.body {
            Some(Body::Hello(hello)) => Ok(Some(Message::Hello(hello))),
            Some(Body::Request(request)) => {
                let begin = Begun::Request { method: request.method(), group: request.group };
                self.begin(call, begin, request.length, request.data)
            }
            Some(Body::Response(response)) => match response.refusal {
                Some(refusal) => Ok(Some(Message::Response { call, result: Err(refusal.reason) })),
                None => self.begin(call, Begun::Response, response.length, response.data),
            },
            Some(Body::More(data)) => {
                self.bytes += data.len();
                // The rest of a message that was cancelled may still be on its way.
                let Some(partial) = self.partial.get_mut(&call) else {
                    self.bytes -= data.len();
                    return Ok(None);
                };
                partial.data.extend_from_slice(&data);
                if partial.data.len() < partial.length {
                    return self.check().map(|()| None);
                }
                self.finish(call)
            }
            Some(Body::Cancel(_)) => {
                if let Some(partial) = self.partial.remove(&call) {
                    self.bytes -= partial.data.len();
                }
                Ok(Some(Message::Cancel { call }))
            }
            Some(Body::Item(item)) => self.begin(call, Begun::Item, item.length, item.data),
            // A kind of frame of a newer version.
            None => Ok(None),
        }
    }

    fn begin(
        &mut self,
        call: u64,
        begin: Begun,
        length: u64,
        data: Bytes,
    ) -> Result<Option<Message>, String> {
        if length == data.len() as u64 {
            return Ok(Some(whole(call, begin, data)));
        }
        if length > MESSAGE_BYTES as u64 {
            return Err(format!("a message of {length} bytes, the limit is {MESSAGE_BYTES}"));
        }
        if data.len() as u64 > length {
            return Err("a message longer than announced".into());
        }
        // Memory is taken as bytes arrive: an announced length alone costs nothing.
        let mut collected = BytesMut::with_capacity((length as usize).min(4 * FRAME_BYTES));
        collected.extend_from_slice(&data);
        self.bytes += data.len();
        let partial = Partial { begin, length: length as usize, data: collected };
        if self.partial.insert(call, partial).is_some() {
            return Err(format!("call {call} begins twice"));
        }
        self.check().map(|()| None)
    }

    fn finish(&mut self, call: u64) -> Result<Option<Message>, String> {
        let Some(partial) = self.partial.remove(&call) else { return Ok(None) };
        self.bytes -= partial.data.len();
        if partial.data.len() > partial.length {
            return Err("a message longer than announced".into());
        }
        Ok(Some(whole(call, partial.begin, partial.data.freeze())))
    }

    fn check(&self) -> Result<(), String> {
        if self.bytes > UNFINISHED_BYTES {
            return Err(format!("more than {UNFINISHED_BYTES} bytes of unfinished messages"));
        }
        Ok(())
    }
}

fn whole(call: u64, begin: Begun, payload: Bytes) -> Message {
    match begin {
        Begun::Request { method, group } => Message::Request { call, method, group, payload },
        Begun::Response => Message::Response { call, result: Ok(payload) },
        Begun::Item => Message::Item { call, payload },
    }
}

#[cfg(test)]
mod tests {
    use durahub_proto::peer::Request;

    use super::*;

    fn request(length: u64, data: &'static [u8]) -> Frame {
        let data = Bytes::from_static(data);
        let request = Request { length, data, ..Request::default() };
        Frame { call: 5, body: Some(Body::Request(request)) }
    }

    fn more(data: &'static [u8]) -> Frame {
        Frame { call: 5, body: Some(Body::More(Bytes::from_static(data))) }
    }

    #[test]
    fn peer_that_breaks_the_protocol_is_told_why() {
        let refused = |frames: Vec<Frame>| {
            let mut inbox = Inbox::default();
            frames.into_iter().find_map(|frame| inbox.accept(frame).err()).unwrap()
        };
        assert!(refused(vec![request(1 << 40, b"a")]).contains("the limit is"));
        assert!(refused(vec![request(1, b"ab")]).contains("longer than announced"));
        assert!(refused(vec![request(3, b"ab"), more(b"cd")]).contains("longer than announced"));
        assert!(refused(vec![request(3, b"ab"), request(3, b"ab")]).contains("begins twice"));
    }

    #[test]
    fn cancelled_message_leaves_nothing_behind() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.accept(request(6, b"ab")), Ok(None));
        let cancel = Frame { call: 5, body: Some(Body::Cancel(Default::default())) };
        assert_eq!(inbox.accept(cancel), Ok(Some(Message::Cancel { call: 5 })));
        assert_eq!(inbox.accept(more(b"cdef")), Ok(None));
        assert_eq!((inbox.bytes, inbox.partial.len()), (0, 0));
    }
}
