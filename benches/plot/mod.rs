//! The plot of README.md: the processor's time of each client, as a part of what libcurl's takes.

use std::fmt::Write;

use crate::{Rounded, Row};

const WIDTH: usize = 860;
/// Where bars begin, and how far the longest of them may go.
const LEFT: usize = 270;
const LONGEST: f64 = 470.0;
const BAR: usize = 11;
const GROUP: usize = 50;
const TOP: usize = 58;

/// An SVG of those rows that are about the processor's time. Its colours do in the light and in the dark.
pub fn svg(names: &[&str], rows: &[Row]) -> String {
    let rows: Vec<_> = rows.iter().filter(|row| row.is_cpu).collect();
    let height = TOP + rows.len() * GROUP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\" role=\"img\">\n\
         <title>Time of the processor, less is better</title>\n\
         <style>\n\
         text {{ fill: #24292f }} .b0 {{ fill: #0969da }} .b1 {{ fill: #bc4c00 }} .b2 {{ fill: #8c959f }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         text {{ fill: #e6edf3 }} .b0 {{ fill: #4493f8 }} .b1 {{ fill: #db6d28 }} .b2 {{ fill: #656c76 }}\n\
         }}\n\
         </style>\n\
         <text x=\"0\" y=\"16\" font-weight=\"600\">\
         The processor's time, as a part of what libcurl takes: less is better</text>\n"
    );
    let mut x = 0;
    for (n, name) in names.iter().enumerate() {
        let name = name.replace('`', "");
        let _ = writeln!(
            svg,
            "<rect class=\"b{n}\" x=\"{x}\" y=\"30\" width=\"11\" height=\"11\"/>\
             <text x=\"{}\" y=\"40\">{name}</text>",
            x + 17
        );
        x += 40 + name.len() * 8;
    }
    // All groups have one scale.
    let shares = rows
        .iter()
        .flat_map(|row| (0..names.len()).map(|n| share(row, n)));
    let most = shares.flatten().fold(1.0, f64::max);
    for (group, row) in rows.iter().enumerate() {
        let top = TOP + group * GROUP;
        let _ = writeln!(
            svg,
            "<text x=\"0\" y=\"{}\">{}</text>\
             <text x=\"0\" y=\"{}\" font-size=\"11\" opacity=\".7\">{}</text>",
            top + 16,
            row.what,
            top + 31,
            row.unit
        );
        for n in 0..names.len() {
            let (Some(share), Some(value)) = (share(row, n), row.values[n]) else {
                continue;
            };
            let (y, width) = (top + n * (BAR + 2), share / most * LONGEST);
            let _ = writeln!(
                svg,
                "<rect class=\"b{n}\" x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" font-size=\"11\">{}</text>",
                LEFT as f64 + width + 6.0,
                y + 10,
                Rounded(value)
            );
        }
    }
    svg + "</svg>\n"
}

/// Of what libcurl takes, who comes second.
fn share(row: &Row, n: usize) -> Option<f64> {
    Some(row.values[n]? / row.values[1]?)
}
