//! A video from clips and pictures, one after the other, with a sound and a caption.

pub mod ffmpeg;

use std::ffi::OsString;
use std::path::Path;

use platform::problem::FieldFault;
use serde::{Deserialize, Serialize};

/// The longest clip that is used, in seconds.
const CLIP: u32 = 120;

/// How a video is made. What a client leaves out has its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VideoParams {
    /// Pixels, even.
    pub width: u32,
    /// Pixels, even.
    pub height: u32,
    /// Pictures a second.
    pub frame_rate: u32,
    /// How long a picture is shown, in seconds.
    pub picture_seconds: f64,
    /// How long each clip takes to appear, in seconds.
    pub fade_seconds: f64,
    /// What stands at the bottom.
    pub caption: String,
    /// Height of its letters in pixels.
    pub caption_size: u32,
}

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Picture,
    Clip,
    Sound,
}

impl Default for VideoParams {
    fn default() -> Self {
        Self {
            width: 1280,
            height: 720,
            frame_rate: 30,
            picture_seconds: 3.0,
            fade_seconds: 0.0,
            caption: String::new(),
            caption_size: 48,
        }
    }
}

impl VideoParams {
    /// What is wrong with them.
    pub fn faults(&self) -> Vec<FieldFault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, field: &str, message: &str| {
            if !holds {
                faults.push(FieldFault {
                    field: format!("params.{field}"),
                    message: message.to_owned(),
                });
            }
        };
        for (field, side) in [("width", self.width), ("height", self.height)] {
            let holds = (64..=1920).contains(&side) && side.is_multiple_of(2);
            check(holds, field, "must be 64 to 1920 pixels, and even");
        }
        check(
            (1..=60).contains(&self.frame_rate),
            "frameRate",
            "must be 1 to 60",
        );
        check(
            (0.1..=60.0).contains(&self.picture_seconds),
            "pictureSeconds",
            "must be 0.1 to 60",
        );
        check(
            (0.0..=5.0).contains(&self.fade_seconds),
            "fadeSeconds",
            "must be 0 to 5",
        );
        check(
            self.caption.chars().count() <= 500,
            "caption",
            "must be at most 500 characters",
        );
        check(
            (8..=200).contains(&self.caption_size),
            "captionSize",
            "must be 8 to 200 pixels",
        );
        faults
    }

    /// What `ffmpeg` is told, for inputs that lie in the folder under their numbers, a caption in `caption.txt`, and the
    /// video in `out.mp4`.
    pub fn arguments(
        &self,
        folder: &Path,
        parts: &[Part],
        font: &Path,
        largest: u64,
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut say = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        say(&["-nostdin", "-hide_banner", "-loglevel", "error", "-y"]);
        let (rate, length) = (
            self.frame_rate.to_string(),
            self.picture_seconds.to_string(),
        );
        let mut filter = String::new();
        let mut shown = Vec::new();
        let mut sound = None;
        for (index, part) in parts.iter().enumerate() {
            let file = folder.join(index.to_string()).display().to_string();
            // A file that names others gets nothing but itself.
            let only = ["-threads", "1", "-protocol_whitelist", "file", "-i", &file];
            match part {
                Part::Picture => {
                    say(&["-loop", "1", "-framerate", &rate, "-t", &length]);
                }
                Part::Clip | Part::Sound => say(&["-t", &CLIP.to_string()]),
            }
            say(&only);
            if *part == Part::Sound {
                sound = Some(index);
                continue;
            }
            let (width, height) = (self.width, self.height);
            filter += &format!(
                "[{index}:v]scale={width}:{height}:force_original_aspect_ratio=decrease,\
                pad={width}:{height}:(ow-iw)/2:(oh-ih)/2,setsar=1,fps={rate},format=yuv420p"
            );
            if self.fade_seconds > 0.0 {
                filter += &format!(",fade=t=in:st=0:d={}", self.fade_seconds);
            }
            filter += &format!("[v{index}];");
            shown.push(format!("[v{index}]"));
        }
        filter += &format!("{}concat=n={}:v=1:a=0", shown.concat(), shown.len());
        if !self.caption.is_empty() {
            filter += &format!(
                ",drawtext=textfile='{}':fontfile='{}':expansion=none:fontsize={}:fontcolor=white:borderw=2:\
                x=(w-text_w)/2:y=h-text_h-{}",
                folder.join("caption.txt").display(),
                font.display(),
                self.caption_size,
                self.caption_size,
            );
        }
        filter += "[v]";
        if let Some(sound) = sound {
            filter += &format!(";[{sound}:a]apad[a]");
        }
        say(&["-filter_complex", &filter, "-map", "[v]"]);
        if sound.is_some() {
            say(&["-map", "[a]", "-c:a", "aac", "-b:a", "128k", "-shortest"]);
        }
        say(&[
            "-c:v", "libx264", "-preset", "veryfast", "-b:v", "2000k", "-threads", "2",
        ]);
        say(&["-movflags", "+faststart", "-fs", &largest.to_string()]);
        arguments.push(folder.join("out.mp4").into());
        arguments
    }
}

impl Part {
    /// By the first bytes; `None` for what is not offered.
    pub fn of(file: &[u8]) -> Option<Self> {
        match file {
            [0xFF, 0xD8, 0xFF, ..] | [0x89, b'P', b'N', b'G', ..] => Some(Self::Picture),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Self::Picture),
            [_, _, _, _, b'f', b't', b'y', b'p', b'M', b'4', b'A', ..]
            | [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'A',
                b'V',
                b'E',
                ..,
            ]
            | [b'I', b'D', b'3', ..]
            | [0xFF, 0xE0..=0xFE, ..]
            | [b'O', b'g', b'g', b'S', ..] => Some(Self::Sound),
            [_, _, _, _, b'f', b't', b'y', b'p', ..] | [0x1A, 0x45, 0xDF, 0xA3, ..] => {
                Some(Self::Clip)
            }
            _ => None,
        }
    }
}
