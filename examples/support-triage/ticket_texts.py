"""What the customers of the example's shop write: the sentences ``make_data.py`` composes tickets from.

The shop sells devices for the home, with an app and a paid plan. Slots in braces are filled per ticket.
"""

CATEGORIES = ["billing", "account", "shipping", "returns", "technical"]

# The problem itself. Every entry is one situation; its alternatives are ways of putting it.
PROBLEMS: dict[str, list[list[str]]] = {
    "billing": [
        [
            "I was charged {amount} twice for {order}",
            "my bank shows two payments of {amount} for order {order}",
            "you took {amount} two times in {month}",
        ],
        [
            "the invoice for {month} shows the wrong company name",
            "invoice {order} has our old address on it",
            "can you correct the VAT number on the {month} invoice",
        ],
        [
            "I never got a receipt for the {product}",
            "I need a receipt for {order} for my tax office",
            "please send the bill for the {product} as a PDF",
        ],
        [
            "the discount code {code} was not taken off",
            "your newsletter promised {percent} percent off but I paid the full price",
            "code {code} does nothing in the basket, I paid {amount}",
        ],
        [
            "my subscription costs {amount} now, it was less in {month}",
            "why did the Plus plan become more expensive",
            "you raised the monthly fee to {amount} without telling me",
        ],
        [
            "my card is declined at the checkout although it works elsewhere",
            "I would like to pay by bank transfer instead of card",
            "the payment page takes my card and then says not authorised",
        ],
        [
            "I cancelled the Plus plan in {month} and you still take {amount} every month",
            "stop charging me for the Plus plan, I ended it weeks ago",
            "there is a charge of {amount} from you that I cannot explain",
        ],
        [
            "can we switch from monthly to yearly payment",
            "we are {count} people now, what would the team plan cost per year",
            "I got a payment reminder for {order} although it was paid in {month}",
        ],
    ],
    "account": [
        [
            "I forgot my password and the reset mail never comes",
            "the link for a new password says it is expired",
            "I asked for a password reset {count} times, nothing in my inbox",
        ],
        [
            "I cannot sign in since {day}",
            "login says unknown user although I bought the {product} with this address",
            "your site signs me out every few minutes",
        ],
        [
            "my profile is locked after too many attempts",
            "it says access suspended when I try to log in",
            "I am locked out and need someone to unblock me",
        ],
        [
            "please change my email from the old one to my new one",
            "I married and want to change my last name in my profile",
            "how do I change the phone number you have for me",
        ],
        [
            "the code for two step verification goes to my old phone",
            "I lost my phone and cannot get the verification code",
            "the six digit code you text me is always refused",
        ],
        [
            "please delete my data and close my profile",
            "I want to be removed from your customer list completely",
            "how can I delete the user I created by mistake in {month}",
        ],
        [
            "my colleague {name} should get access to our team space",
            "please make {name} the owner of our workspace, I leave in {month}",
            "remove {name} from our team, she no longer works here",
        ],
        [
            "I have two profiles and want to merge them",
            "somebody from {place} logged in as me on {day}",
            "I see orders in my profile that belong to a stranger",
        ],
    ],
    "shipping": [
        [
            "order {order} should have been here on {day}",
            "I am still waiting for the {product} I ordered in {month}",
            "the {product} has not arrived after {count} days",
        ],
        [
            "the tracking page has shown the same place for {count} days",
            "tracking says {place} since {day} and nothing moves",
            "the tracking number for {order} does not exist at the carrier",
        ],
        [
            "it says delivered on {day} but there is nothing at my door",
            "your driver claims he handed over {order} to {name}, nobody of that name lives here",
            "the courier left a card without saying where the box is",
        ],
        [
            "please send {order} to my office in {place} instead",
            "I typed the wrong street for {order}, can it still be changed",
            "we move to {place} in {month}, please use the new address for the {product}",
        ],
        [
            "only {count} of the boxes arrived, the rest of {order} is missing",
            "the box came but the {product} was not in it",
            "half of my order is missing",
        ],
        [
            "do you deliver the {product} to {place}",
            "how long does it take until a {product} gets to {place}",
            "can I have the {product} brought on a {day}",
        ],
        [
            "the customs office in {place} wants papers for {order}",
            "my parcel is held at the border in {place}",
            "the driver could not find the house and took the {product} back to the depot",
        ],
        [
            "can you hold {order} until I am back in {month}",
            "I would like to pick up the {product} at the depot",
            "please send both orders together, {order} has not left yet",
        ],
    ],
    "returns": [
        [
            "I want to send the {product} back, it does not suit our room",
            "the {product} is not what I expected and I would like to return it",
            "please take back the {product}, we bought two by mistake",
        ],
        [
            "I returned the {product} in {month} and have not seen my money",
            "when do I get my refund of {amount} for {order}",
            "you received my {product} on {day}, where is the {amount}",
        ],
        [
            "can I swap the {product} for the {colour} one",
            "the {product} came in {colour}, I ordered another colour, please exchange it",
            "I would rather have the bigger {product}, how do I exchange it",
        ],
        [
            "I need a return label for {order}",
            "the return form on your page refuses {order}",
            "how do I send something back without a printer",
        ],
        [
            "the {product} arrived with a crack in the glass, I want a new one",
            "the {product} was scratched when I opened the box, please replace it",
            "one leg of the {product} is bent, I would like a replacement",
        ],
        [
            "is it too late to give back a {product} bought in {month}",
            "how many days do I have to change my mind about the {product}",
            "it was a gift and we have it already, can it go back without the bill",
        ],
        [
            "you refunded {amount} but I paid more for {order}",
            "part of the refund for {order} is missing",
            "the refund went to a card I no longer have",
        ],
        [
            "I refused the {product} at the door, please cancel {order}",
            "I would like to cancel {order} and get my money back",
            "who pays the postage when I send the {product} back",
        ],
    ],
    "technical": [
        [
            "the app crashes when I open the {feature}",
            "since the update the app closes itself after {count} seconds",
            "the app freezes on the {feature} every time",
        ],
        [
            "the {product} does not connect to our wifi any more",
            "the {product} loses bluetooth after {count} minutes",
            "my phone cannot find the {product} during setup",
        ],
        [
            "the {product} does not switch on",
            "the {product} turns itself off at night",
            "the {product} blinks {colour} and does nothing",
        ],
        [
            "I get error {code} when I press save",
            "the screen of the {product} only shows {code}",
            "there is a message with {code} and then everything stops",
        ],
        [
            "the {feature} shows the data of last {month}",
            "the {feature} in the app is empty since {day}",
            "the export of the {feature} gives a file that cannot be opened",
        ],
        [
            "the update of the {product} stops at {percent} percent",
            "firmware {code} fails on my {product}",
            "after the update the {product} is much slower",
        ],
        [
            "how do I reset the {product} to factory settings",
            "which button pairs the {product} with a second phone",
            "does the {product} work with other hubs",
        ],
        [
            "the {product} makes a humming noise",
            "the battery of the {product} is empty after {count} hours",
            "the motion sensor of the {product} reacts much too late",
        ],
    ],
}

# Sentences about *another* topic that is settled or beside the point: the tickets' hard cases.
SIDE_REMARKS: dict[str, list[str]] = {
    "billing": [
        "The payment itself went through fine",
        "I have the invoice in front of me",
        "The price is not the problem",
        "I paid {amount} in {month}, that part is clear",
    ],
    "account": [
        "I can log in without trouble by the way",
        "The password thing from {month} is solved, thanks",
        "My profile has the right address",
        "{name} already gave me access, so that is fine",
    ],
    "shipping": [
        "The delivery was quick, no complaints there",
        "The parcel came on {day} as promised",
        "Your driver was very kind",
        "Tracking worked well this time",
    ],
    "returns": [
        "I do not want a refund",
        "I sent another {product} back in {month}, that one is done",
        "I would keep it, no need to exchange anything",
        "The return of {order} went well",
    ],
    "technical": [
        "The {product} itself works perfectly",
        "The app is fine since the last update",
        "The wifi problem of {month} is gone",
        "No error messages so far",
    ],
}

URGENCY: dict[str, list[str]] = {
    "high": [
        "I need this solved today",
        "this cannot wait any longer",
        "please answer within the hour",
        "we open the shop tomorrow and nothing works without it",
        "my mother depends on it, so please hurry",
        "this is the third time I write and I am losing patience",
        "I leave for {place} tonight and need it before",
        "our whole team of {count} is stuck because of this",
        "if I hear nothing by {day} I will call my lawyer",
        "urgent!!",
        "ASAP please",
    ],
    "normal": [
        "",
        "",
        "",
        "",
        "please let me know what to do",
        "I would be glad about an answer this week",
        "what are the next steps",
        "could you look into it",
        "can someone get back to me",
    ],
    "low": [
        "no hurry at all",
        "just wondering, it can wait",
        "whenever you find the time",
        "it is not important, I was only curious",
        "take your time, I am on holiday until {month}",
        "next month is early enough",
        "only a small thing really",
        "I can live with it for now",
    ],
}

GREETINGS = ["Hi,", "Hello,", "Dear team,", "Good morning,", "hey there,", "Hello support,", "", "", "", ""]
CONTEXTS = [
    "I have been a customer since {month}.",
    "I bought a {product} from you.",
    "We use the {product} in our office in {place}.",
    "I am writing for my neighbour {name}.",
    "My order number is {order}.",
    "I spoke to {name} on the phone on {day}.",
    "We have {count} of your devices.",
    "I already looked at your help pages.",
    "I wrote to you on {day} already.",
    "My wife ordered a {colour} {product}.",
]
DETAILS = [
    "It happened on {day}.",
    "I tried it {count} times.",
    "My neighbour {name} says the same.",
    "It was different in {month}.",
    "I attached a picture.",
    "The number is {order}.",
    "It is about the {colour} one.",
    "I do not find anything about it on your page.",
    "You can reach me at {mail}.",
    "My number is {phone}.",
]
CLOSINGS = [
    "Thanks, {name}",
    "Best regards, {name}",
    "{name}",
    "Kind regards",
    "Cheers {name}",
    "thank you",
    "",
    "",
    "",
]

SLOTS: dict[str, list[str]] = {
    "product": (
        "desk lamp|thermostat|door camera|kitchen scale|smart plug|air purifier|robot vacuum|speaker|smoke alarm|"
        "coffee machine|weather station|ceiling light|baby monitor|water kettle|curtain motor|garden sensor"
    ).split("|"),
    "feature": "energy chart|room list|timer|calendar|night mode|camera view|weekly report|scene editor".split("|"),
    "month": "January February March April May June July August September October November December".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "place": "Lisbon Ghent Oslo Krakow Graz Turin Lyon Cork Malmo Brno Porto Basel Leeds Utrecht Riga Split".split(),
    "name": "Petra Marek Aisha Tomas Lena Gustav Noor Paula Ivan Chloe Bram Sofia Karim Judith Rafael Mei".split(),
    "colour": "white black red green silver blue".split(),
}
