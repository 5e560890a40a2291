//! Ten prompts: prose, code, numbers, other scripts; the shortest is one word, the longest takes several prefill chunks.

use std::fmt::Write;

/// Tokens that are generated for each.
pub const ANSWER: u32 = 64;

/// The ten prompts.
pub fn ten() -> Vec<String> {
    let mut prompts: Vec<String> = [
        "Once",
        "The lighthouse keeper counted the ships again and found that",
        "A recipe for bread with four ingredients:\n1.",
        "fn largest(values: &[u32]) -> Option<u32> {\n",
        "Dear aunt, thank you for the clock. Since it came into the house,",
        "Grüße aus Köln! Die Straßenbahn fährt heute nicht, weil",
        "Here is a list of the first prime numbers: 2, 3, 5, 7, 11, 13,",
        "The committee met on Tuesday. Its chair, who had crossed the river on foot since the bridge was closed, opened the \
         meeting with a question that nobody had expected: if the mill is sold, who will keep the water running? The \
         members looked at each other. Then the oldest of them rose and said:",
        "日本の朝ご飯には、",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    prompts.push(harbour_log(24));
    prompts
}

/// A long text of `days` entries, about fourteen tokens or more each; no two are alike.
pub fn harbour_log(days: u32) -> String {
    const WINDS: [&str; 5] = ["north", "south-west", "east", "north-west", "south"];
    const NOTES: [&str; 7] = [
        "a crate of lemons was lost at the pier",
        "the pilot slept late",
        "two children caught an eel",
        "fog hid the outer buoy until noon",
        "the crane was painted green",
        "a dog came ashore alone",
        "the baker gave away yesterday's rolls",
    ];
    let mut log = String::from("The log of the harbour of Old Fenwick, kept by its third clerk.\n");
    for day in 1..=days {
        let wind = WINDS[(day * 3 % 5) as usize];
        let note = NOTES[(day * 5 % 7) as usize];
        let boats = 4 + day * 7 % 11;
        // Writing to a String cannot fail.
        let _ = writeln!(log, "Day {day}: wind from the {wind}, {boats} boats out, {} back; {note}.", boats - day % 3);
    }
    let _ = write!(log, "Day {}: wind from the", days + 1);
    log
}
