// Prints a token that express-gateway.cjs accepts.
const jwt = require("jsonwebtoken");

console.log(jwt.sign({ sub: "user-1", role: "user" }, process.env.JWT_SECRET, { expiresIn: "6h" }));
