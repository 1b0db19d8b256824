//! Pictures of figures, as SVG: one chart with axes, named points, and a legend that hides none of them.
//!
//! This file knows numbers and names, not what they mean. A picture must be readable on white paper and for eyes that
//! see few colours apart, so a series differs from its neighbours by its marks as well.

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::fault::{Fault, Result};

const WIDTH: u32 = 960;
const HEIGHT: u32 = 600;
/// Room for the names on the right of the axes.
const LEGEND_WIDTH: i32 = 230;
const FONT: &str = "DejaVu Sans, Verdana, sans-serif";
/// Colours that stay apart for most colour-blind eyes (after Okabe and Ito, without their yellow).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(60, 60, 60),
];

/// How an axis is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    Linear,
    /// By powers of ten; what is not above zero cannot be shown and is left out.
    Log,
}

#[derive(Clone, Debug)]
pub struct Axis {
    pub label: String,
    pub scale: Scale,
    /// How a value is written at the axis.
    pub format: fn(f64) -> String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    Dots,
    /// For what others have published: a cross is not one of ours.
    Crosses,
    /// For what has a value at each place, such as a distribution.
    Line,
}

#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub mark: Mark,
    pub points: Vec<(f64, f64)>,
}

#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

impl Chart {
    /// The picture as the text of an SVG file.
    ///
    /// # Errors
    /// When no point can be shown.
    pub fn svg(&self) -> Result<String> {
        let shown = self.shown();
        let values = |of: fn(&(f64, f64)) -> f64| shown.iter().flat_map(|series| &series.points).map(of);
        let x = bounds(values(|point| point.0), self.x.scale);
        let y = bounds(values(|point| point.1), self.y.scale);
        let (Some(x), Some(y)) = (x, y) else {
            return Err(Fault::Refused(format!("there is nothing to draw in \"{}\"", self.title)));
        };
        let [x_range, y_range] = [x.0..x.1, y.0..y.1];
        let mut text = String::new();
        let drawn = match (self.x.scale, self.y.scale) {
            (Scale::Linear, Scale::Linear) => self.draw(&mut text, &shown, x_range, y_range),
            (Scale::Linear, Scale::Log) => self.draw(&mut text, &shown, x_range, y_range.log_scale()),
            (Scale::Log, Scale::Linear) => self.draw(&mut text, &shown, x_range.log_scale(), y_range),
            (Scale::Log, Scale::Log) => self.draw(&mut text, &shown, x_range.log_scale(), y_range.log_scale()),
        };
        drawn.map_err(|cause| Fault::Refused(format!("\"{}\" cannot be drawn: {cause}", self.title)))?;
        Ok(text)
    }

    /// The points that their axes have a place for.
    fn shown(&self) -> Vec<Series> {
        let has_place = |value: f64, scale| value.is_finite() && (scale == Scale::Linear || value > 0.0);
        let mut series = self.series.clone();
        for series in &mut series {
            series.points.retain(|&(x, y)| has_place(x, self.x.scale) && has_place(y, self.y.scale));
        }
        series
    }

    fn draw<X, Y>(&self, text: &mut String, shown: &[Series], x: X, y: Y) -> std::result::Result<(), String>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let shows = |cause: &dyn std::fmt::Display| cause.to_string();
        let root = SVGBackend::with_string(text, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(|cause| shows(&cause))?;
        let (area, legend) = root.split_horizontally(WIDTH as i32 - LEGEND_WIDTH);
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, (FONT, 20))
            .margin(14)
            .x_label_area_size(52)
            .y_label_area_size(84)
            .build_cartesian_2d(x, y)
            .map_err(|cause| shows(&cause))?;
        chart
            .configure_mesh()
            .x_desc(&self.x.label)
            .y_desc(&self.y.label)
            .x_label_formatter(&|value| (self.x.format)(*value))
            .y_label_formatter(&|value| (self.y.format)(*value))
            .label_style((FONT, 14))
            .axis_desc_style((FONT, 15))
            .light_line_style(RGBColor(240, 240, 240))
            .bold_line_style(RGBColor(215, 215, 215))
            .draw()
            .map_err(|cause| shows(&cause))?;
        for (at, series) in shown.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let points = series.points.iter().copied();
            match series.mark {
                Mark::Dots => chart.draw_series(points.map(|point| Circle::new(point, 4, colour.filled()))).map(drop),
                Mark::Crosses => {
                    chart.draw_series(points.map(|point| Cross::new(point, 5, colour.stroke_width(2)))).map(drop)
                }
                Mark::Line => chart.draw_series(LineSeries::new(points, colour.stroke_width(2))).map(drop),
            }
            .map_err(|cause| shows(&cause))?;
            name(&legend, at, series, colour).map_err(|cause| shows(&cause))?;
        }
        root.present().map_err(|cause| shows(&cause))
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// One line of the legend: the mark and the name, in the lines of text that it needs.
fn name(
    legend: &Area<'_>,
    at: usize,
    series: &Series,
    colour: RGBColor,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let y = 60 + at as i32 * 44;
    match series.mark {
        Mark::Dots => legend.draw(&Circle::new((16, y), 5, colour.filled()))?,
        Mark::Crosses => legend.draw(&Cross::new((16, y), 5, colour.stroke_width(2)))?,
        Mark::Line => legend.draw(&PathElement::new([(6, y), (26, y)], colour.stroke_width(2)))?,
    }
    let style = (FONT, 13).into_text_style(legend).pos(Pos::new(HPos::Left, VPos::Center));
    for (line, part) in lines(&series.name, 26).into_iter().enumerate() {
        legend.draw(&Text::new(part, (36, y + line as i32 * 16), style.clone()))?;
    }
    Ok(())
}

/// Breaks a name at spaces.
fn lines(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// From the least to the greatest, with some air; a linear axis begins at zero, as lengths must to be compared.
fn bounds(values: impl Iterator<Item = f64>, scale: Scale) -> Option<(f64, f64)> {
    let (least, greatest) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), value| (least.min(value), greatest.max(value)));
    if least > greatest {
        return None;
    }
    Some(match scale {
        Scale::Linear => (least.min(0.0), if greatest > 0.0 { greatest * 1.05 } else { 1.0 }),
        Scale::Log => (least / 1.3, greatest * 1.3),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, points: Vec<(f64, f64)>) -> Chart {
        let axis = |label: &str| Axis { label: label.to_owned(), scale, format: |value| format!("{value}") };
        let series = |name: &str, mark| Series { name: name.to_owned(), mark, points: points.clone() };
        let series = vec![series("dots", Mark::Dots), series("published", Mark::Crosses)];
        Chart { title: "a <title>".to_owned(), x: axis("across"), y: axis("up & down"), series }
    }

    #[test]
    fn a_picture_names_its_axes_and_series_and_holds_a_mark_for_each_point() {
        for scale in [Scale::Linear, Scale::Log] {
            let svg = chart(scale, vec![(1.0, 10.0), (100.0, 20.0), (1e4, 5.0)]).svg().unwrap();
            for text in ["a &lt;title&gt;", "across", "up &amp; down", "dots", "published"] {
                assert!(svg.contains(text), "{scale:?}: {text}");
            }
            assert_eq!(svg.matches("<circle").count(), 3 + 1, "{scale:?}: three points, and one in the legend");
        }
    }

    #[test]
    fn a_point_without_a_place_on_a_logarithmic_axis_is_left_out() {
        let svg = chart(Scale::Log, vec![(0.0, 10.0), (10.0, f64::NAN), (100.0, 5.0)]).svg().unwrap();
        assert_eq!(svg.matches("<circle").count(), 1 + 1);
        let nothing = chart(Scale::Log, vec![(0.0, 0.0)]).svg().unwrap_err();
        assert!(nothing.to_string().contains("a <title>"), "{nothing}");
    }

    #[test]
    fn long_names_are_broken_at_spaces() {
        assert_eq!(lines("etcd 3.7.3, pool of 100,000", 12), ["etcd 3.7.3,", "pool of", "100,000"]);
        assert_eq!(lines("one", 2), ["one"]);
    }
}
