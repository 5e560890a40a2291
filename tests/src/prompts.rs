//! Ten prompts: prose, code, numbers, other scripts; from one word to several prefill chunks. Five requests to repeat a text
//! with one word changed.

use std::fmt::Write;

/// Tokens generated per prompt.
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

/// A long text of `days` different entries of about fourteen tokens or more.
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

/// Five requests to repeat a text with one word changed, like edits in an editor.
pub fn edits() -> Vec<String> {
    let request = |(text, old, new): &(&str, &str, &str)| {
        format!(
            "Repeat the following text exactly, but write \"{new}\" instead of \"{old}\". Answer with the text only.\n\n\
             {text}"
        )
    };
    TEXTS.iter().map(request).collect()
}

/// Texts, a word in each, and its replacement.
const TEXTS: [(&str, &str, &str); 5] = [
    (
        "The harbour of Old Fenwick lies at the mouth of a slow river. In the morning the boats go out with \
         the tide, and in the evening they come back with herring and crabs. The clerk writes down every boat \
         that leaves and every boat that returns. On Mondays the baker brings fresh rolls to the pier, and \
         the children wait for the ones that are left over. When fog hides the outer buoy, the pilot rings \
         the bell until noon. Nobody in the town remembers who hung the bell there, but everybody knows its \
         sound.",
        "pier",
        "bridge",
    ),
    (
        "My grandmother kept bees behind the old school. Each hive had a number and a colour, and she could \
         tell from the hum which of them was hungry. In spring she walked along the row with a notebook and \
         wrote down what the bees had done during the winter. The honey was dark, because most of it came \
         from the lime trees by the canal. She sold it in small jars at the market and gave the last jar of \
         every year to the postman, who was afraid of bees but very fond of honey.",
        "canal",
        "railway",
    ),
    (
        "The library opens at nine, but the librarian comes at seven to light the stove. She puts the \
         newspapers on the long table and waters the plants in the window. The first visitor is always the \
         retired teacher, who reads the chess column and solves the problem in his head. After him come the \
         students, who need the warm room more than the books. At noon the librarian eats her soup behind the \
         counter. Nobody has ever seen her read a novel, yet she knows how each of them ends.",
        "chess",
        "garden",
    ),
    (
        "To repair a bicycle you need patience and a clean floor. Turn the machine upside down and spin the \
         wheels to see whether they run straight. Take off the chain, wash it in warm water and let it dry in \
         the sun. While it dries, look at the brakes: the rubber must be soft and the cable must move without \
         a sound. Put a drop of oil on every joint, but not on the rims. When everything is back in its \
         place, ride once around the block and listen carefully.",
        "chain",
        "saddle",
    ),
    (
        "The night train to the coast leaves from platform four. It has six sleeping cars and a small kitchen \
         in which a cook makes tea for those who cannot sleep. Between the mountains and the sea it stops \
         only twice, once for water and once for the mail. The conductor knows most of the passengers by \
         name, because they travel every week. At dawn the lamps go out, the curtains are drawn back, and the \
         first thing that everyone sees is the white lighthouse on the cliff.",
        "kitchen",
        "workshop",
    ),
];
